//! What the store is told: where, how durable, how much memory, how long.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use crate::{
    downsample::Downsample,
    model::{Table, TenantId},
    object::BucketUrl,
    part::Promoted,
};

/// When an append is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After the `fdatasync` of its group (groups close after 2 ms or 1 MiB).
    Group,
    /// After the write; `fdatasync` every so often. A power cut may lose that much.
    Interval(Duration),
    /// After the write; the operating system decides.
    None,
}

/// How long rows of a table are kept, by event time. The most specific rule wins: tenant and table, table, tenant, default.
#[derive(Clone, Debug, Default)]
pub struct Retention {
    pub rules: Vec<RetentionRule>,
}

#[derive(Clone, Debug)]
pub struct RetentionRule {
    pub tenant: Option<TenantId>,
    pub table: Option<Table>,
    pub keep: Duration,
}

impl Retention {
    /// `None`: kept for ever.
    pub fn keep(&self, tenant: &TenantId, table: Table) -> Option<Duration> {
        self.rules
            .iter()
            .filter(|r| r.tenant.as_ref().is_none_or(|t| t == tenant) && r.table.is_none_or(|t| t == table))
            .max_by_key(|r| (r.table.is_some(), r.tenant.is_some()))
            .map(|r| r.keep)
    }
}

/// How many metric series a tenant may have at once. `None`: no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesLimits {
    /// Active series.
    pub series: Option<usize>,
    /// Active series of one metric.
    pub series_per_metric: Option<usize>,
    /// Distinct values of one label name over all active series; the metric's name is no label here.
    pub label_values: Option<usize>,
    /// Distinct values of one label name over the active series of one metric.
    pub label_values_per_metric: Option<usize>,
    /// A series is active while a point of it arrived within this time.
    pub active_for: Duration,
}

impl Default for SeriesLimits {
    fn default() -> Self {
        SeriesLimits {
            series: None,
            series_per_metric: None,
            label_values: None,
            label_values_per_metric: None,
            active_for: Duration::from_secs(3600),
        }
    }
}

impl SeriesLimits {
    pub(crate) fn is_none(&self) -> bool {
        self.series.is_none() && self.series_per_metric.is_none() && !self.pairs()
    }

    /// Whether labels are counted.
    pub(crate) fn pairs(&self) -> bool {
        self.label_values.is_some() || self.label_values_per_metric.is_some()
    }
}

#[derive(Clone, Debug, Default)]
pub struct SeriesLimitsByTenant {
    /// Of tenants that are not named.
    pub defaults: SeriesLimits,
    pub named: HashMap<TenantId, SeriesLimits>,
}

impl SeriesLimitsByTenant {
    pub fn of(&self, tenant: &TenantId) -> &SeriesLimits {
        self.named.get(tenant).unwrap_or(&self.defaults)
    }

    /// How often series that went quiet are looked for.
    pub(crate) fn sweep_every(&self) -> Duration {
        let shortest = self.named.values().map(|l| l.active_for).fold(self.defaults.active_for, Duration::min);
        (shortest / 4).clamp(Duration::from_millis(500), Duration::from_secs(10))
    }
}

#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Log, lock and read cache; without a bucket, everything.
    pub dir: PathBuf,
    /// Where parts and their logs are, if not in `dir`.
    pub bucket: Option<BucketUrl>,
    /// Bound of the read cache on the local disk; of use with a bucket only.
    pub cache_bytes: u64,
    pub durability: Durability,
    /// Names this writer in the Delta log; two stores on one bucket need two names.
    pub node: String,
    /// Bytes the store may hold in memory (head, caches, merges in flight).
    pub memory_bytes_max: usize,
    /// Head bytes of one table that trigger a flush.
    pub flush_bytes: usize,
    /// Age of the oldest head row that triggers a flush.
    pub flush_age: Duration,
    pub retention: Retention,
    /// Which samples are aggregated.
    pub downsample: Downsample,
    /// Bounds on metric series.
    pub series: SeriesLimitsByTenant,
    /// Whether background flush, compaction and retention run. Off only in tests that drive them by hand.
    pub background: bool,
    /// Bytes of one file of the write-ahead log; it is deleted whole.
    pub wal_segment_bytes: u64,
    /// Bytes of the write-ahead log above which writes are refused until something is flushed.
    pub wal_bytes_full: u64,
    /// Attributes of logs and spans that get a column of their own in new parts.
    pub promoted: Promoted,
    /// Refuse writes above this share of the disk in use (0..1).
    pub disk_used_max: f64,
}

impl StoreConfig {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        StoreConfig {
            dir: dir.into(),
            bucket: None,
            cache_bytes: 4 << 30,
            durability: Durability::Group,
            node: "local".to_owned(),
            memory_bytes_max: 768 << 20,
            flush_bytes: 128 << 20,
            flush_age: Duration::from_secs(300),
            retention: Retention::default(),
            downsample: Downsample::default(),
            series: SeriesLimitsByTenant::default(),
            background: true,
            wal_segment_bytes: crate::wal::SEGMENT_BYTES,
            wal_bytes_full: crate::limits::WAL_BYTES_FULL,
            promoted: Promoted::default(),
            disk_used_max: 0.95,
        }
    }
}
