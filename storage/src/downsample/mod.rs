//! Aggregates of samples over five minutes and over an hour, made in the background and kept as tables of their own.
//!
//! **For** queries over months that need not read every sample, and for keeping a coarse past longer than the samples.
//! **Not for** choosing between samples and aggregates: a query does, by [`crate::Store::downsampled`]. Native histograms and
//! exemplars are not aggregated.
//!
//! A bucket holds the samples behind its start, up to and with its end, as a range of PromQL does: a window that begins and
//! ends with buckets sees just their samples. Work goes by the hour. An hour is aggregated when it is over for as long as the
//! rules say, and again when samples have come to it since: its part says by a tag which commits of samples it was made of.
//!
//! # Invariants
//! 1. A part of aggregates and the tag that says what it was made of are one commit, which also removes the part it replaces:
//!    after a crash an hour is there whole, once, or it is made again.
//! 2. An hour is made only while retention cannot have taken a sample of it; later what there is stays as it is.
//! 3. A delete takes aggregates first and samples then, and nothing is aggregated in between.
//! 4. Of two aggregates of a series and bucket the later commit's counts, as with samples.

mod fold;
mod hours;
mod rows;
mod worker;

use std::{collections::HashMap, time::Duration};

pub use fold::{Aggregate, fold};
pub(crate) use hours::{TAG_SAMPLE_HOURS, tag_of, tag_of_samples};
pub use rows::{Columns, to_batch};
pub(crate) use worker::run;

use crate::model::{Labels, Matcher, Table, TenantId, time::NANOS_PER_MILLI};

/// Milliseconds of the unit of work.
pub const HOUR_MS: i64 = 3_600_000;

/// Bits of the NaN that marks the end of a series.
const STALE_NAN_BITS: u64 = 0x7ff0_0000_0000_0002;

/// The hour of the sample at `ms`: hour `h` holds `h * HOUR_MS < ms <= (h + 1) * HOUR_MS`.
pub fn hour_of(ms: i64) -> i64 {
    ms.saturating_sub(1).div_euclid(HOUR_MS)
}

/// Length of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resolution {
    FiveMinutes,
    Hour,
}

impl Resolution {
    /// Finer first.
    pub const ALL: [Resolution; 2] = [Resolution::FiveMinutes, Resolution::Hour];

    pub const fn name(self) -> &'static str {
        match self {
            Resolution::FiveMinutes => "5m",
            Resolution::Hour => "1h",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.name() == name)
    }

    pub const fn millis(self) -> i64 {
        match self {
            Resolution::FiveMinutes => 300_000,
            Resolution::Hour => HOUR_MS,
        }
    }

    pub const fn nanos(self) -> i64 {
        self.millis() * NANOS_PER_MILLI
    }

    /// Where its aggregates rest.
    pub const fn table(self) -> Table {
        match self {
            Resolution::FiveMinutes => Table::MetricSamples5m,
            Resolution::Hour => Table::MetricSamples1h,
        }
    }

    pub fn of_table(table: Table) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.table() == table)
    }

    /// End of the bucket that holds the sample at `ms`.
    pub fn end_of(self, ms: i64) -> i64 {
        let length = self.millis();
        ms.saturating_sub(1).div_euclid(length).saturating_add(1).saturating_mul(length)
    }
}

/// Which samples are aggregated, how, and when.
#[derive(Clone, Debug)]
pub struct Rule {
    /// `None`: every tenant.
    pub tenant: Option<TenantId>,
    /// A series is meant that all matchers of one of them accept; an empty one accepts every series.
    pub selectors: Vec<Vec<Matcher>>,
    pub resolutions: Vec<Resolution>,
    /// How long an hour must be over. What comes later costs a second turn.
    pub after: Duration,
    /// Whether queries that say nothing of it take aggregates where the answer is the same.
    pub auto: bool,
}

impl Rule {
    fn applies(&self, tenant: &TenantId, resolution: Resolution) -> bool {
        self.tenant.as_ref().is_none_or(|t| t == tenant) && self.resolutions.contains(&resolution)
    }

    fn accepts(&self, labels: &Labels) -> bool {
        self.selectors.iter().any(|s| s.iter().all(|m| m.matches(labels)))
    }
}

/// All rules; a series is aggregated if any of them says so.
#[derive(Clone, Debug, Default)]
pub struct Downsample {
    pub rules: Vec<Rule>,
}

impl Downsample {
    /// Whether series of these labels are aggregated.
    pub fn accepts(&self, tenant: &TenantId, resolution: Resolution, labels: &Labels) -> bool {
        self.of(tenant, resolution).any(|r| r.accepts(labels))
    }

    /// Whether any rule of the tenant takes aggregates by itself.
    pub fn is_auto(&self, tenant: &TenantId) -> bool {
        Resolution::ALL.into_iter().any(|r| self.of(tenant, r).any(|rule| rule.auto))
    }

    fn of<'a>(&'a self, tenant: &'a TenantId, resolution: Resolution) -> impl Iterator<Item = &'a Rule> {
        self.rules.iter().filter(move |r| r.applies(tenant, resolution))
    }

    /// Stands for what is aggregated at a resolution: another one, and hours are made anew. `None`: nothing.
    fn fingerprint(&self, tenant: &TenantId, resolution: Resolution) -> Option<u64> {
        let mut texts: Vec<String> = self
            .of(tenant, resolution)
            .flat_map(|r| &r.selectors)
            .map(|s| s.iter().map(|m| format!("{m},")).collect::<String>())
            .collect();
        texts.sort();
        texts.dedup();
        (!texts.is_empty()).then(|| xxhash_rust::xxh3::xxh3_64(texts.join("|").as_bytes()))
    }

    /// How long an hour must be over for all of a resolution's rules.
    fn after(&self, tenant: &TenantId, resolution: Resolution) -> Duration {
        self.of(tenant, resolution).map(|r| r.after).max().unwrap_or_default()
    }
}

/// Hours that were looked at and gave no aggregate: there is no part to say so.
pub(crate) type EmptyHours = HashMap<(TenantId, Resolution, i64), hours::Made>;
