//! While a bucket is away nothing can be flushed, so memory would soon be what bounds the writes that are taken. The rows are in
//! the WAL all the same: the oldest are let go of and read from there, as after a restart, until the WAL is as long as it may get.

use std::sync::{Arc, atomic::Ordering};

use super::{HeadBatch, HeadRows};
use crate::{
    limits,
    store::{Inner, TableState},
};

/// A batch is worth it if what remembers it is this many times smaller.
const WORTH: usize = 4;

impl Inner {
    /// Whether the last flush failed, so that the next one may, too.
    fn cannot_flush(&self) -> bool {
        self.flush_pause.lock().0 > 0
    }

    /// Lets go of rows in memory once they take half of what heads may have, down to a quarter.
    pub(crate) fn spill(&self) {
        if self.far.is_none() || !self.cannot_flush() {
            return;
        }
        let held = || self.head_bytes.load(Ordering::Relaxed);
        if held() < self.head_bytes_max() / limits::SPILL_FROM {
            return;
        }
        let mut tables = self.tables_now();
        tables.sort_by_key(|t| std::cmp::Reverse(t.data.read().head.bytes));
        for state in tables {
            let batches = state.data.read().head.batches.clone();
            for batch in batches {
                if held() <= self.head_bytes_max() / limits::SPILL_TO {
                    return;
                }
                self.spill_batch(&state, &batch);
            }
        }
    }

    /// Rows are let go of only when the WAL has just given them back. The new batch is the old one in all but where its rows are,
    /// so whoever flushes or merges beside this sees no difference.
    fn spill_batch(&self, state: &TableState, batch: &Arc<HeadBatch>) {
        let bytes = size_of_val(batch.at.as_slice());
        if !matches!(batch.rows, HeadRows::Memory(_)) || batch.at.is_empty() || bytes * WORTH > batch.bytes {
            return;
        }
        let spilled =
            HeadBatch { rows: HeadRows::Wal(batch.at.clone()), at: Vec::new(), bytes, ..batch.without_rows() };
        match spilled.load(state.table) {
            Ok(rows) if rows.num_rows() == batch.row_count => {}
            Ok(rows) => {
                let (found, wanted) = (rows.num_rows(), batch.row_count);
                tracing::error!(found, wanted, "the write-ahead log has other rows than memory; they stay in memory");
                return;
            }
            Err(e) => {
                tracing::error!(error = %e, "the write-ahead log does not give back rows; they stay in memory");
                return;
            }
        }
        let mut data = state.data.write();
        let before = data.head.bytes;
        data.head.replace_run(std::slice::from_ref(batch), spilled);
        let freed = before - data.head.bytes;
        drop(data);
        self.head_bytes.fetch_sub(freed, Ordering::Relaxed);
        if freed > 0 {
            self.metrics.head_spilled.fetch_add(batch.row_count as u64, Ordering::Relaxed);
            self.head_freed.notify_waiters();
        }
    }
}
