//! Row groups of samples that were unpacked a moment ago: dashboards and rules ask for the same hour again and again, and
//! unpacking it is most of what a short query costs.
//!
//! # Invariants
//! 1. Files are never written twice: what is kept of one is right as long as it is kept.
//! 2. No more than `bytes_max` are kept, the least recently used forgotten first.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use crate::part::SampleGroup;

pub(crate) struct Groups {
    bytes_max: usize,
    /// What is kept, for whoever reports it.
    bytes: AtomicU64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Counts look-ups: the age of a group.
    clock: u64,
    bytes: usize,
    files: HashMap<String, HashMap<usize, Kept>>,
}

struct Kept {
    used: u64,
    bytes: usize,
    group: Arc<SampleGroup>,
}

impl Groups {
    pub fn new(bytes_max: usize) -> Self {
        Groups { bytes_max, bytes: AtomicU64::new(0), held: Mutex::default() }
    }

    /// About how much one scan may leave here: more would only push out what others use.
    pub fn bytes_of_a_scan(&self) -> usize {
        self.bytes_max / 4 * 3
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn get(&self, file: &str, group: usize) -> Option<Arc<SampleGroup>> {
        let mut held = self.held.lock();
        held.clock += 1;
        let now = held.clock;
        let kept = held.files.get_mut(file)?.get_mut(&group)?;
        kept.used = now;
        Some(kept.group.clone())
    }

    pub fn keep(&self, file: &str, group: usize, unpacked: &Arc<SampleGroup>) {
        let bytes = unpacked.memory_size() + size_of::<Kept>();
        if bytes > self.bytes_of_a_scan() {
            return;
        }
        let mut held = self.held.lock();
        let used = held.clock;
        let kept = Kept { used, bytes, group: unpacked.clone() };
        let before = held.files.entry(file.to_owned()).or_default().insert(group, kept);
        held.bytes += bytes;
        held.bytes -= before.map_or(0, |b| b.bytes);
        if held.bytes > self.bytes_max {
            held.shrink_to(self.bytes_max / 8 * 7);
        }
        self.bytes.store(held.bytes as u64, Ordering::Relaxed);
    }

    pub fn forget(&self, file: &str) {
        let mut held = self.held.lock();
        if let Some(gone) = held.files.remove(file) {
            held.bytes -= gone.values().map(|k| k.bytes).sum::<usize>();
            self.bytes.store(held.bytes as u64, Ordering::Relaxed);
        }
    }
}

impl Held {
    fn shrink_to(&mut self, bytes: usize) {
        let mut ages: Vec<(u64, usize)> =
            self.files.values().flat_map(HashMap::values).map(|k| (k.used, k.bytes)).collect();
        ages.sort_unstable();
        let mut left = self.bytes;
        // Those of one age go together.
        let cut = ages.iter().find_map(|(used, bytes_of)| {
            left -= bytes_of;
            (left <= bytes).then_some(*used)
        });
        let cut = cut.unwrap_or(u64::MAX);
        self.files.retain(|_, groups| {
            groups.retain(|_, k| k.used > cut);
            !groups.is_empty()
        });
        self.bytes = self.files.values().flat_map(HashMap::values).map(|k| k.bytes).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(rows: usize) -> Arc<SampleGroup> {
        Arc::new(SampleGroup::flat((0..rows as i64).collect(), vec![0.5; rows]))
    }

    #[test]
    fn the_least_recently_used_groups_go_first_and_the_bound_holds() {
        let groups = Groups::new(100_000);
        let one = group(500);
        for n in 0..40 {
            assert!(groups.get("a", n).is_none());
            groups.keep("a", n, &one);
            // Used all the time.
            assert!(groups.get("a", 0).is_some());
            assert!(groups.bytes() <= 100_000);
        }
        assert!(groups.get("a", 39).is_some() && groups.get("a", 1).is_none());
        groups.keep("b", 0, &group(50_000));
        assert!(groups.get("b", 0).is_none(), "larger than what a scan may leave");
        groups.keep("b", 0, &one);
        groups.forget("a");
        assert!(groups.get("a", 0).is_none() && groups.get("b", 0).is_some());
        groups.forget("b");
        assert_eq!(groups.bytes(), 0);
    }
}
