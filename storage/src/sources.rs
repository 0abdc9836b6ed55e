//! What senders need remembered: how far each source has got, and which batch ids are already stored. Both live in WAL
//! records beside the rows they speak of, and are carried into every new segment, so that they outlive the old ones.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::{SourcePosition, limits, model::TenantId, wal::Section};

type Key = (TenantId, String);
type Batch = (TenantId, [u8; 16]);

#[derive(Debug, Default)]
pub(crate) struct SourceMemory {
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    positions: HashMap<Key, (u64, u64)>, // position, age
    age: u64,
    batches: HashSet<Batch>,
    batch_order: VecDeque<Batch>,
    in_flight: HashSet<Batch>,
}

/// Whether a batch id may be stored now.
pub(crate) enum Admission {
    New(InFlight),
    /// Stored before.
    Duplicate,
    /// Another append with the same id has not ended yet.
    InFlight,
}

/// Holds a batch id until its append has ended, one way or the other.
pub(crate) struct InFlight {
    held: Arc<Mutex<Held>>,
    batch: Batch,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.held.lock().in_flight.remove(&self.batch);
    }
}

impl SourceMemory {
    pub fn position(&self, tenant: &TenantId, key: &str) -> Option<u64> {
        self.held.lock().positions.get(&(tenant.clone(), key.to_owned())).map(|(p, _)| *p)
    }

    pub fn admit(&self, tenant: &TenantId, id: [u8; 16]) -> Admission {
        let batch = (tenant.clone(), id);
        let mut held = self.held.lock();
        if held.batches.contains(&batch) {
            return Admission::Duplicate;
        }
        if !held.in_flight.insert(batch.clone()) {
            return Admission::InFlight;
        }
        Admission::New(InFlight { held: self.held.clone(), batch })
    }

    /// Remembers what a durable record said.
    pub fn record(&self, tenant: &TenantId, positions: &[SourcePosition], batch_id: Option<[u8; 16]>) {
        let mut held = self.held.lock();
        for p in positions {
            held.age += 1;
            let age = held.age;
            held.positions.insert((tenant.clone(), p.key.clone()), (p.position, age));
        }
        if held.positions.len() > limits::SOURCE_POSITIONS_MAX {
            // Drop the older half at once, so that the cost is spread.
            let mut ages: Vec<u64> = held.positions.values().map(|(_, a)| *a).collect();
            let middle = ages.len() / 2;
            let (_, cut, _) = ages.select_nth_unstable(middle);
            let cut = *cut;
            held.positions.retain(|_, (_, a)| *a >= cut);
        }
        if let Some(id) = batch_id {
            let batch = (tenant.clone(), id);
            if held.batches.insert(batch.clone()) {
                held.batch_order.push_back(batch);
                if held.batch_order.len() > limits::BATCH_IDS_MAX
                    && let Some(old) = held.batch_order.pop_front()
                {
                    held.batches.remove(&old);
                }
            }
        }
    }

    /// Everything, as sections for the first record of a new segment.
    pub fn carry(&self) -> Vec<(TenantId, Vec<Section>)> {
        let held = self.held.lock();
        let mut out: HashMap<TenantId, Vec<Section>> = HashMap::new();
        for ((tenant, key), (position, _)) in &held.positions {
            out.entry(tenant.clone()).or_default().push(Section::Position { key: key.clone(), position: *position });
        }
        for (tenant, id) in &held.batch_order {
            out.entry(tenant.clone()).or_default().push(Section::BatchId(*id));
        }
        out.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_id_is_admitted_once_stored_and_again_once_refused() {
        let memory = SourceMemory::default();
        let tenant = TenantId::default_tenant();
        let Admission::New(guard) = memory.admit(&tenant, [1; 16]) else { panic!("fresh id") };
        assert!(matches!(memory.admit(&tenant, [1; 16]), Admission::InFlight));
        drop(guard); // refused
        let Admission::New(guard) = memory.admit(&tenant, [1; 16]) else { panic!("refused id may come again") };
        memory.record(&tenant, &[], Some([1; 16]));
        drop(guard);
        assert!(matches!(memory.admit(&tenant, [1; 16]), Admission::Duplicate));
        assert!(matches!(memory.admit(&TenantId::parse("b").unwrap(), [1; 16]), Admission::New(_)));
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_latest() {
        let memory = SourceMemory::default();
        let tenant = TenantId::default_tenant();
        for i in 0..limits::SOURCE_POSITIONS_MAX as u64 + 10 {
            memory.record(&tenant, &[SourcePosition { key: i.to_string(), position: i }], None);
        }
        let last = limits::SOURCE_POSITIONS_MAX as u64 + 9;
        assert_eq!(memory.position(&tenant, &last.to_string()), Some(last));
        assert_eq!(memory.position(&tenant, "0"), None);
    }
}
