//! Every bound of the store, with its reason.

/// Rows of one scan batch: small enough to stay in cache, large enough to make per-batch work vanish.
pub const SCAN_BATCH_ROWS: usize = 8192;

/// Rows of a Parquet row group: the unit of pruning and of a reader's memory.
pub const ROW_GROUP_ROWS_MAX: usize = 131_072;

/// Batches in flight between a scan's workers and its reader.
pub const SCAN_QUEUE_BATCHES: usize = 4;

/// Rows of a Parquet page at most: what a scan decodes to get at one row.
pub const PAGE_ROWS_MAX: usize = 4096;

/// Bytes of a page of log bodies at most, before compression.
pub const BODY_PAGE_BYTES_MAX: usize = 256 << 10;

/// Bytes of any other page at most, before compression.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes of a column chunk's dictionary page at most; beyond it the rest of the chunk is written plain.
pub const DICTIONARY_PAGE_BYTES_MAX: usize = 1 << 20;

/// Same for `series_id` of points, which is worth a dictionary at any size.
pub const SERIES_DICTIONARY_BYTES_MAX: usize = 4 << 20;

/// Bytes of the distinct values of one dictionary column that a flush keeps at once; beyond it values are gathered row
/// by row.
pub const FLUSH_DICTIONARY_BYTES_MAX: usize = 256 << 20;

/// Decoded bytes of a part's run index at most, against a damaged length.
pub const RUN_INDEX_BYTES_MAX: usize = 1 << 30;

/// Spans of one trace for which nested-set numbers are computed; of a larger trace they stay null.
pub const NESTED_SET_SPANS_MAX: usize = 262_144;
