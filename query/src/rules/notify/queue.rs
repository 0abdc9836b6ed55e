//! The newest word on each alert, until it is delivered. Bounded in alerts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Notice;

/// Alerts that may wait for one receiver; of more, the oldest are dropped and counted. Source: Prometheus.
const WAITING_MAX: usize = 10_000;

type Key = BTreeMap<String, String>;

#[derive(Clone, Default)]
pub struct Queue(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    changed: Notify,
    sent: AtomicU64,
    errors: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// In the order of their coming.
    order: BTreeMap<u64, Notice>,
    place: HashMap<Key, u64>,
}

impl Waiting {
    fn insert(&mut self, notice: Notice) {
        match self.place.get(&notice.labels) {
            Some(place) => drop(self.order.insert(*place, notice)),
            None => {
                self.place.insert(notice.labels.clone(), self.next);
                self.order.insert(self.next, notice);
                self.next += 1;
            }
        }
    }

    fn take_first(&mut self) -> Option<Notice> {
        let (_, notice) = self.order.pop_first()?;
        self.place.remove(&notice.labels);
        Some(notice)
    }
}

impl Queue {
    pub fn put(&self, notices: &[Notice]) {
        let mut waiting = self.0.waiting.lock();
        notices.iter().for_each(|n| waiting.insert(n.clone()));
        self.bound(&mut waiting);
        drop(waiting);
        self.0.changed.notify_one();
    }

    fn bound(&self, waiting: &mut Waiting) {
        while waiting.order.len() > WAITING_MAX {
            waiting.take_first();
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// At most `most` of those that wait longest; waits for the first.
    pub async fn take(&self, most: usize) -> Vec<Notice> {
        loop {
            let changed = self.0.changed.notified();
            {
                let mut waiting = self.0.waiting.lock();
                let taken: Vec<Notice> = std::iter::from_fn(|| waiting.take_first()).take(most).collect();
                if !taken.is_empty() {
                    return taken;
                }
            }
            changed.await;
        }
    }

    /// Not delivered: they wait again, unless there is newer word.
    pub fn put_back(&self, notices: Vec<Notice>) {
        self.0.errors.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.0.waiting.lock();
        for notice in notices {
            if !waiting.place.contains_key(&notice.labels) {
                waiting.insert(notice);
            }
        }
        self.bound(&mut waiting);
    }

    pub fn delivered(&self, notices: usize) {
        self.0.sent.fetch_add(notices as u64, Ordering::Relaxed);
    }

    pub fn refused(&self, notices: usize) {
        self.0.dropped.fetch_add(notices as u64, Ordering::Relaxed);
    }

    /// Sent, errors, dropped, waiting.
    pub fn figures(&self) -> [u64; 4] {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        [get(&self.0.sent), get(&self.0.errors), get(&self.0.dropped), self.0.waiting.lock().order.len() as u64]
    }
}
