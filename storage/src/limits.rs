//! Every bound of the store, with its reason.

/// Rows of one scan batch: small enough to stay in cache, large enough to make per-batch work vanish.
pub const SCAN_BATCH_ROWS: usize = 8192;

/// Rows of a Parquet row group: the unit of pruning and of a reader's memory.
pub const ROW_GROUP_ROWS_MAX: usize = 131_072;

/// Batches in flight between a scan's workers and its reader.
pub const SCAN_QUEUE_BATCHES: usize = 4;

/// Rows of a Parquet page at most: what a scan decodes to get at one row.
pub const PAGE_ROWS_MAX: usize = 4096;

/// Bytes of a page of log bodies, attributes or labels at most, before compression.
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

/// Spans of one trace that a merge numbers and rids of repeated span ids. It must hold all of them to do so (some 200 MB at
/// this bound), since a part has a trace's spans in tree order. The spans of a larger trace are kept and found all the same,
/// in the order they came, repeated ones too and with null numbers; parent ids decide then, as they do for rows in the head.
pub const NESTED_SET_SPANS_MAX: usize = 262_144;

/// Templates per row of a log stream in one flush above which the stream counts as untemplated, and the rows it must have for
/// that to mean anything: a stream of few rows has few of each template, however regular it is.
pub const TEMPLATES_PER_ROW_MAX: f64 = 0.1;
pub const TEMPLATED_ROWS_MIN: usize = 1024;

/// Attributes with a column of their own, by configuration.
pub const PROMOTED_MAX: usize = 64;

/// Bytes a scan may hold to bring rows into time order.
pub const SCAN_SORT_BYTES_MAX: usize = 256 << 20;

/// Parts of one flush beyond which several are written at once, and how many: what takes long is waiting for the disk.
/// Rows of thousands of old days make as many parts.
pub const FLUSH_PARTS_SERIAL: usize = 96;
pub const FLUSH_WRITERS: usize = 16;

/// Event time of a head beyond which it is not flushed because it is idle: a small part for each of many days would have
/// to be merged with the next ones soon.
pub const FLUSH_IDLE_SPAN: std::time::Duration = std::time::Duration::from_secs(32 * 86_400);

/// Hours of event time one flush may spread over before its parts go by day.
pub const FLUSH_HOURS_MAX: usize = 72;

/// Batch ids remembered per store, for senders that retry.
pub const BATCH_IDS_MAX: usize = 65_536;

/// Source positions remembered; the least recently written go first.
pub const SOURCE_POSITIONS_MAX: usize = 100_000;

/// Parts whose footers and indexes are kept open.
pub const OPEN_PARTS_MAX: usize = 512;

/// Bytes of unpacked samples that are kept for the next query: some hours of 10,000 series.
pub const UNPACKED_SAMPLES_BYTES_MAX: usize = 64 << 20;

/// Head bytes of one table that an idle table is flushed at, and the time it must be idle.
pub const IDLE_FLUSH_BYTES: usize = 1 << 20;
pub const IDLE_FLUSH_AFTER: std::time::Duration = std::time::Duration::from_secs(2);

/// WAL bytes of decoded batches flushed at a time after a restart.
pub const REPLAY_FLUSH_WAL_BYTES: u64 = 24 << 20;

/// Longest wait of an append for head memory before it is refused.
pub const APPEND_WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Tables of all tenants; one more is refused.
pub const TABLES_MAX: usize = 6_000;

/// Active WAL segments of at least this size are ended when every row is in a part, so that the disk is given back.
pub const WAL_ROTATE_BYTES: u64 = 4 << 20;

/// WAL bytes on disk that force a flush of the table that holds the oldest record.
pub const WAL_BYTES_MAX: u64 = 1 << 30;

/// WAL bytes on disk above which small heads are flushed early, when they alone keep the WAL: a table that gets a few rows
/// a minute must not hold on to all that others have long flushed.
pub const WAL_HELD_BYTES: u64 = 64 << 20;

/// How many times the bytes of all heads the WAL may be before the rest counts as held for nothing.
pub const WAL_HELD_SHARE: u64 = 8;

/// While a bucket is away, rows in memory are let go of from this share of what heads may have (a half) down to that (a
/// quarter); the WAL has them.
pub const SPILL_FROM: usize = 2;
pub const SPILL_TO: usize = 4;

/// WAL bytes on disk above which writes are refused, by default: what cannot be flushed for so long must not fill the disk.
pub const WAL_BYTES_FULL: u64 = 4 << 30;

/// Pause after failed flushes: the first, doubling to the longest, so that a store that is away is not asked all the time.
pub const FLUSH_PAUSE_FIRST: std::time::Duration = std::time::Duration::from_millis(500);
pub const FLUSH_PAUSE_MAX: std::time::Duration = std::time::Duration::from_secs(15);

/// How long series are taken for new without a look at parts in a store that did not answer.
pub const INDEX_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);

/// Batches up to this size are encoded on the caller's thread; larger ones on a blocking thread.
pub const INLINE_ENCODE_BYTES: usize = 64 << 10;
