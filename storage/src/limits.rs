//! Every bound of the store, with its reason.

/// Rows of one scan batch: small enough to stay in cache, large enough to make per-batch work vanish.
pub const SCAN_BATCH_ROWS: usize = 8192;

/// Rows of a Parquet row group: the unit of pruning and of a reader's memory.
pub const ROW_GROUP_ROWS_MAX: usize = 131_072;

/// Batches in flight between a scan's workers and its reader.
pub const SCAN_QUEUE_BATCHES: usize = 4;
