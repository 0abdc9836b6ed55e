//! The head: rows that are durable in the WAL and not yet in a part, visible to every scan.
//!
//! Each batch is in memory, or in the WAL only and decoded when asked for: after a restart, so that a start-up with a full WAL
//! needs little memory, and while a bucket is away ([`spill`]). Batches are immutable; many small ones are merged into one behind the readers' backs.

pub(crate) mod cardinality;
pub(crate) mod census;
pub(crate) mod flush;
pub(crate) mod lookup;
mod pairs;
pub(crate) mod points;
pub(crate) mod repeats;
pub(crate) mod rows;
pub(crate) mod series;
pub(crate) mod spill;

use std::{sync::Arc, time::Duration};

use arrow::array::RecordBatch;

use crate::wal::BatchLocation;

/// Where the rows of a head batch are.
#[derive(Clone, Debug)]
pub(crate) enum HeadRows {
    Memory(RecordBatch),
    /// In the order of the rows; not empty.
    Wal(Vec<BatchLocation>),
}

impl HeadRows {
    /// Bytes of the WAL to read for them.
    pub fn wal_bytes(&self) -> u64 {
        match self {
            HeadRows::Memory(_) => 0,
            HeadRows::Wal(at) => at.iter().map(|a| u64::from(a.meta.payload_len)).sum(),
        }
    }
}

/// Rows of one or more consecutive WAL records of one table.
#[derive(Debug)]
pub(crate) struct HeadBatch {
    /// WAL sequence numbers of the oldest and newest record in it.
    pub first_seq: u64,
    pub last_seq: u64,
    pub rows: HeadRows,
    /// Where rows in memory are in the WAL, in their order; empty where nobody will ask.
    pub at: Vec<BatchLocation>,
    pub row_count: usize,
    /// Event time, nanoseconds, inclusive.
    pub min_ts: i64,
    pub max_ts: i64,
    /// Bytes of rows in memory; of rows that were spilled, those of what remembers them; 0 of replayed ones.
    pub bytes: usize,
    /// Monotonic time of arrival.
    pub arrived: Duration,
}

impl HeadBatch {
    /// The same, to be given rows.
    fn without_rows(&self) -> HeadBatch {
        HeadBatch { rows: HeadRows::Wal(Vec::new()), at: Vec::new(), bytes: 0, ..*self }
    }
}

/// The head of one table: batches in WAL order.
#[derive(Debug, Default, Clone)]
pub(crate) struct TableHead {
    pub batches: Vec<Arc<HeadBatch>>,
    pub bytes: usize,
    pub last_arrival: Duration,
    /// WAL sequence number up to which rows have left.
    pub retired: u64,
    /// Deletes of rows that were here or in parts.
    pub rewritten: u64,
}

/// Batches below this many rows are merged once [`COALESCE_RUN`] of them stand in a row.
const COALESCE_ROWS: usize = 4096;
const COALESCE_RUN: usize = 32;

impl TableHead {
    pub fn push(&mut self, batch: HeadBatch) {
        self.bytes += batch.bytes;
        self.last_arrival = self.last_arrival.max(batch.arrived);
        self.batches.push(Arc::new(batch));
    }

    /// Drops everything up to and including `seq`.
    pub fn retire(&mut self, seq: u64) {
        self.retired = self.retired.max(seq);
        self.batches.retain(|b| b.last_seq > seq);
        self.bytes = self.batches.iter().map(|b| b.bytes).sum();
    }

    /// A run of small in-memory batches worth merging: its position and its batches.
    pub fn small_run(&self) -> Option<(usize, Vec<Arc<HeadBatch>>)> {
        let small = |b: &HeadBatch| matches!(b.rows, HeadRows::Memory(_)) && b.row_count < COALESCE_ROWS;
        let mut start = 0;
        while start < self.batches.len() {
            let len = self.batches[start..].iter().take_while(|b| small(b)).count();
            if len >= COALESCE_RUN {
                let mut rows = 0;
                let take = self.batches[start..start + len]
                    .iter()
                    .take_while(|b| {
                        rows += b.row_count;
                        rows <= 4 * COALESCE_ROWS
                    })
                    .count()
                    .max(2);
                return Some((start, self.batches[start..start + take].to_vec()));
            }
            start += len.max(1);
        }
        None
    }

    /// Puts `merged` in the place of `run`, if the run is still there.
    pub fn replace_run(&mut self, run: &[Arc<HeadBatch>], merged: HeadBatch) {
        let Some(at) = self.batches.iter().position(|b| Arc::ptr_eq(b, &run[0])) else { return };
        let same = self.batches.len() >= at + run.len()
            && run.iter().zip(&self.batches[at..]).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            return;
        }
        self.bytes = self.bytes + merged.bytes - run.iter().map(|b| b.bytes).sum::<usize>();
        self.batches.splice(at..at + run.len(), [Arc::new(merged)]);
    }
}

/// One batch out of many small ones.
pub(crate) fn merge_run(run: &[Arc<HeadBatch>]) -> Option<HeadBatch> {
    let parts: Vec<&RecordBatch> = run
        .iter()
        .filter_map(|b| match &b.rows {
            HeadRows::Memory(r) => Some(r),
            HeadRows::Wal(_) => None,
        })
        .collect();
    if parts.len() != run.len() || parts.is_empty() {
        return None;
    }
    let rows = arrow::compute::concat_batches(parts[0].schema_ref(), parts).ok()?;
    Some(HeadBatch {
        first_seq: run[0].first_seq,
        last_seq: run[run.len() - 1].last_seq,
        row_count: rows.num_rows(),
        min_ts: run.iter().map(|b| b.min_ts).min()?,
        max_ts: run.iter().map(|b| b.max_ts).max()?,
        bytes: rows.get_array_memory_size(),
        arrived: run[0].arrived,
        at: run.iter().flat_map(|b| b.at.iter().cloned()).collect(),
        rows: HeadRows::Memory(rows),
    })
}
