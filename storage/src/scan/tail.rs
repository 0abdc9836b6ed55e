//! What came into a table since one last looked: for readers that keep rows of their own and want only those they lack.
//!
//! Not a subscription: nothing is kept for a reader. Rows that were flushed, or deleted, before he asked again are not told
//! one by one; he is told that his copy is no longer good and reads what he needs by a scan.
//!
//! Invariant: what a reader holds of a table that was scanned after [`Store::mark`] gave a mark, with all tails since that
//! mark laid over it in their order, is what a scan gives now. Rows may be told twice, always in commit order.

use std::sync::Arc;

use arrow::array::RecordBatch;

use crate::{
    ScanError,
    head::{HeadBatch, HeadRows, TableHead},
    model::{Table, TenantId},
    store::Store,
};

/// How far a reader has seen a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// WAL sequence number up to which everything was seen.
    seq: u64,
    /// Deletes before.
    rewritten: u64,
}

impl Mark {
    fn of(head: &TableHead) -> Mark {
        let seq = head.batches.last().map_or(0, |b| b.last_seq).max(head.retired);
        Mark { seq, rewritten: head.rewritten }
    }
}

/// Rows since a mark, in commit order.
#[derive(Debug)]
pub struct Tail {
    table: Table,
    batches: Vec<Arc<HeadBatch>>,
    mark: Mark,
}

impl Tail {
    pub fn table(&self) -> Table {
        self.table
    }

    /// Where to go on.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    pub fn rows(&self) -> usize {
        self.batches.iter().map(|b| b.row_count).sum()
    }

    /// Whether no file has to be read for the rows.
    pub fn in_memory(&self) -> bool {
        self.batches.iter().all(|b| matches!(b.rows, HeadRows::Memory(_)))
    }

    /// The rows, in the table's schema in a head. May block, where not [`Tail::in_memory`].
    pub fn load(&self) -> Result<Vec<RecordBatch>, ScanError> {
        self.batches.iter().map(|b| b.load(self.table)).collect()
    }
}

impl Store {
    /// The place behind everything that a scan of the table sees from now on at the least.
    pub fn mark(&self, tenant: &TenantId, table: Table) -> Mark {
        self.inner.table(tenant, table).map_or_else(Mark::default, |state| Mark::of(&state.data.read().head))
    }

    /// Rows that came after `since`; `None` when they are not all at hand, or rows before it were deleted.
    pub fn tail(&self, tenant: &TenantId, table: Table, since: Mark) -> Option<Tail> {
        let Some(state) = self.inner.table(tenant, table) else {
            return Some(Tail { table, batches: Vec::new(), mark: since });
        };
        let data = state.data.read();
        let head = &data.head;
        if head.retired > since.seq || head.rewritten != since.rewritten {
            return None;
        }
        let from = head.batches.partition_point(|b| b.last_seq <= since.seq);
        Some(Tail { table, batches: head.batches[from..].to_vec(), mark: Mark::of(head) })
    }
}
