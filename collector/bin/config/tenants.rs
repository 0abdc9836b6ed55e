//! The section `tenants:`: what each tenant may push and ask for, and how long its rows are kept.
//!
//! ```yaml
//! tenants:
//!   defaults: {ingest_bytes: 10MiB, query_range: 30d}
//!   overrides:
//!     team-a: {ingest_bytes: 50MiB, retention: 14d}
//! ```
//! What an override leaves out is as in `defaults`; what these leave out has no bound of its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use collector::tenants::{IngestLimits, Tenants};
use query::limits::{ByTenant, TenantLimits};
use serde::Deserialize;
use storage::{
    config::{Retention, RetentionRule, SeriesLimits, SeriesLimitsByTenant},
    model::{Table, TenantId},
};

use super::units::{Bytes, Span};

/// The section as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Section {
    defaults: FileLimits,
    overrides: BTreeMap<String, FileLimits>,
}

/// Bounds of one tenant.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileLimits {
    /// Bytes a second through the push protocols, before compression.
    ingest_bytes: Option<Bytes>,
    /// Log records, spans and points a second.
    ingest_rows: Option<u64>,
    /// How much of these rates may come at once after a quiet time; 5s by default.
    ingest_burst: Option<Span>,
    /// Active log streams.
    streams: Option<usize>,
    /// Active metric series.
    series: Option<usize>,
    /// Active series of one metric.
    series_per_metric: Option<usize>,
    /// Distinct values of one label name over the active series.
    label_values: Option<usize>,
    /// Distinct values of one label name over the active series of one metric.
    label_values_per_metric: Option<usize>,
    /// A series is active while a point of it arrived within this time; 1h by default.
    series_active: Option<Span>,
    /// Longest time one query may read.
    query_range: Option<Span>,
    /// Series one query may select.
    query_series: Option<usize>,
    /// Samples one query may hold.
    query_samples: Option<usize>,
    /// How long rows are kept, unless `retention` has a rule for this tenant and table.
    retention: Option<Span>,
}

/// The section, checked.
#[derive(Debug)]
pub struct Checked {
    pub ingest: Tenants,
    /// For the store's configuration.
    pub series: SeriesLimitsByTenant,
    pub queries: Arc<ByTenant>,
}

/// Checks the section. Rules for retention are added to `retention`; problems are told with their path.
pub fn check(section: &Section, retention: &mut Retention, problem: &mut dyn FnMut(&str, String)) -> Checked {
    bounds("tenants.defaults", &section.defaults, problem);
    let mut ingest = HashMap::new();
    let mut series = HashMap::new();
    let mut queries = HashMap::new();
    let mut rules = Vec::new();
    for (name, limits) in &section.overrides {
        let path = super::yaml::join("tenants.overrides", name);
        bounds(&path, limits, problem);
        let tenant = match TenantId::parse(name) {
            Ok(tenant) => tenant,
            Err(e) => {
                problem(&path, e.to_string());
                continue;
            }
        };
        let limits = limits.or(&section.defaults);
        if let Some(Span(keep)) = limits.retention {
            let of = |table| RetentionRule { tenant: Some(tenant.clone()), table: Some(table), keep };
            rules.extend(Table::ALL.map(of));
        }
        ingest.insert(tenant.clone(), limits.ingest());
        series.insert(tenant.clone(), limits.series());
        queries.insert(tenant, limits.queries());
    }
    if let Some(Span(keep)) = section.defaults.retention {
        rules.push(RetentionRule { tenant: None, table: None, keep });
    }
    // Of rules that are equally specific the last one counts: those of `retention` itself.
    rules.append(&mut retention.rules);
    retention.rules = rules;
    Checked {
        ingest: Tenants::new(section.defaults.ingest(), ingest),
        series: SeriesLimitsByTenant { defaults: section.defaults.series(), named: series },
        queries: Arc::new(ByTenant { defaults: section.defaults.queries(), named: queries }),
    }
}

/// A bound of nothing would take nothing at all: that is a slip.
fn bounds(path: &str, limits: &FileLimits, problem: &mut dyn FnMut(&str, String)) {
    let zero = |n: Option<usize>| n == Some(0);
    let none = |s: Option<Span>| s.is_some_and(|s| s.0.is_zero());
    for (name, wrong) in [
        ("ingest_bytes", limits.ingest_bytes.is_some_and(|b| b.0 == 0)),
        ("ingest_rows", limits.ingest_rows == Some(0)),
        ("ingest_burst", none(limits.ingest_burst)),
        ("streams", zero(limits.streams)),
        ("series", zero(limits.series)),
        ("series_per_metric", zero(limits.series_per_metric)),
        ("label_values", zero(limits.label_values)),
        ("label_values_per_metric", zero(limits.label_values_per_metric)),
        ("series_active", none(limits.series_active)),
        ("query_range", none(limits.query_range)),
        ("query_series", zero(limits.query_series)),
        ("query_samples", zero(limits.query_samples)),
        ("retention", none(limits.retention)),
    ] {
        if wrong {
            problem(&super::yaml::join(path, name), "expected more than 0".to_owned());
        }
    }
}

impl FileLimits {
    fn or(&self, other: &FileLimits) -> FileLimits {
        FileLimits {
            ingest_bytes: self.ingest_bytes.or(other.ingest_bytes),
            ingest_rows: self.ingest_rows.or(other.ingest_rows),
            ingest_burst: self.ingest_burst.or(other.ingest_burst),
            streams: self.streams.or(other.streams),
            series: self.series.or(other.series),
            series_per_metric: self.series_per_metric.or(other.series_per_metric),
            label_values: self.label_values.or(other.label_values),
            label_values_per_metric: self.label_values_per_metric.or(other.label_values_per_metric),
            series_active: self.series_active.or(other.series_active),
            query_range: self.query_range.or(other.query_range),
            query_series: self.query_series.or(other.query_series),
            query_samples: self.query_samples.or(other.query_samples),
            // That of the defaults is a rule of its own, so that rules for tables come before it.
            retention: self.retention,
        }
    }

    fn ingest(&self) -> IngestLimits {
        IngestLimits {
            bytes_per_second: self.ingest_bytes.map(|b| b.0),
            rows_per_second: self.ingest_rows,
            burst: self.ingest_burst.map_or(IngestLimits::default().burst, |s| s.0),
            streams_max: self.streams,
        }
    }

    fn series(&self) -> SeriesLimits {
        SeriesLimits {
            series: self.series,
            series_per_metric: self.series_per_metric,
            label_values: self.label_values,
            label_values_per_metric: self.label_values_per_metric,
            active_for: self.series_active.map_or(SeriesLimits::default().active_for, |s| s.0),
        }
    }

    fn queries(&self) -> TenantLimits {
        TenantLimits {
            range_max: self.query_range.map(|s| s.0),
            series_max: self.query_series,
            samples_max: self.query_samples,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn checked(yaml: &str) -> (Checked, Retention, Vec<String>) {
        let document = crate::config::yaml::Document::parse(yaml).unwrap();
        let section: Section = serde_json::from_value(document.value).unwrap();
        let explicit = RetentionRule {
            tenant: Some(TenantId::parse("a").unwrap()),
            table: Some(Table::Spans),
            keep: Duration::from_secs(1),
        };
        let mut retention = Retention { rules: vec![explicit] };
        let mut problems = Vec::new();
        let checked =
            check(&section, &mut retention, &mut |path, message| problems.push(format!("{path}: {message}")));
        (checked, retention, problems)
    }

    #[test]
    fn an_override_takes_what_it_leaves_out_from_the_defaults() {
        let (checked, retention, problems) = checked(
            "defaults: {query_range: 30d, query_series: 100, retention: 60d}\n\
             overrides:\n  a: {query_range: 1h, retention: 7d}\n",
        );
        assert!(problems.is_empty(), "{problems:?}");
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        let of = checked.queries.of(&a);
        assert_eq!((of.range_max, of.series_max), (Some(Duration::from_secs(3600)), Some(100)));
        let day = Duration::from_secs(86_400);
        assert_eq!(checked.queries.of(&b).range_max, Some(day * 30));
        assert_eq!(retention.keep(&a, Table::Logs), Some(day * 7));
        assert_eq!(retention.keep(&a, Table::Spans), Some(Duration::from_secs(1)), "a rule of its own comes first");
        assert_eq!(retention.keep(&b, Table::Spans), Some(day * 60));
    }

    #[test]
    fn limits_on_series_reach_the_store_by_tenant() {
        let (checked, _, problems) = checked(
            "defaults: {series: 9, label_values: 5}\n\
             overrides:\n  a: {series_per_metric: 3, label_values_per_metric: 2, series_active: 5m}\n",
        );
        assert!(problems.is_empty(), "{problems:?}");
        let of = |name| checked.series.of(&TenantId::parse(name).unwrap()).clone();
        let b = SeriesLimits { series: Some(9), label_values: Some(5), ..SeriesLimits::default() };
        assert_eq!(of("b"), b);
        let a = SeriesLimits {
            series_per_metric: Some(3),
            label_values_per_metric: Some(2),
            active_for: Duration::from_secs(300),
            ..b
        };
        assert_eq!(of("a"), a);
    }

    #[test]
    fn bad_names_and_bounds_of_nothing_are_told() {
        let (_, _, problems) = checked("defaults: {streams: 0}\noverrides:\n  a|b: {ingest_rows: 0}\n  ..: {}\n");
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems[0].starts_with("tenants.defaults.streams: expected more"), "{problems:?}");
    }
}
