//! Every bound of LogQL, with its reason. Values that Loki has too are Loki's defaults.

/// Entries of one log query.
pub const ENTRIES_MAX: usize = 5000;

/// Steps of one metric query.
pub const POINTS_MAX: i64 = 11_000;

/// Series in an answer.
pub const SERIES_MAX: usize = 500;

/// Cells (series x steps) of one range aggregation: 16 bytes each.
pub const CELLS_MAX: usize = 16 << 20;

/// Longest time between start and end of a query, nanoseconds: 30 days and an hour.
pub const QUERY_LENGTH_MAX: i64 = (30 * 24 + 1) * 3_600_000_000_000;
