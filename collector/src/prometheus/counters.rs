//! What a scraping source took and lost.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

#[derive(Debug, Default)]
pub struct Counters {
    pub scrapes: AtomicU64,
    /// Scrapes that ended with `up` 0.
    pub failed: AtomicU64,
    /// Samples exposed by targets.
    pub scraped: AtomicU64,
    /// Rows the pipeline has: samples, stale markers, exemplars and our own series.
    pub delivered: AtomicU64,
    /// Rows no sink took before the next scrape.
    pub lost: AtomicU64,
    /// Rows of new series that the store left out: a limit of the tenant.
    pub over_limit: AtomicU64,
    /// Samples of a series that had one at that time already.
    pub duplicates: AtomicU64,
    /// Samples too far ahead of us.
    pub ahead: AtomicU64,
    pub exemplars_refused: AtomicU64,
    pub stale_markers: AtomicU64,
    /// Classic histograms that `convert_classic_histograms_to_nhcb` left as they are: they are none.
    pub not_converted: AtomicU64,
    /// Discovered targets that make none: no address, broken times.
    pub invalid_targets: AtomicU64,
    /// Discoveries that failed; the targets known before stay.
    pub discovery_failures: AtomicU64,
}

type Family = (&'static str, fn(&Counters) -> &AtomicU64);

impl Counters {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }
}

/// Prometheus text of all scraping sources, by name.
pub fn render(sources: &[(String, Arc<Counters>)], out: &mut String) {
    if sources.is_empty() {
        return;
    }
    let families: [Family; 13] = [
        ("scrapes", |c| &c.scrapes),
        ("failed_scrapes", |c| &c.failed),
        ("samples", |c| &c.scraped),
        ("delivered", |c| &c.delivered),
        ("lost", |c| &c.lost),
        ("over_limit", |c| &c.over_limit),
        ("duplicates", |c| &c.duplicates),
        ("ahead", |c| &c.ahead),
        ("exemplars_refused", |c| &c.exemplars_refused),
        ("stale_markers", |c| &c.stale_markers),
        ("histograms_not_converted", |c| &c.not_converted),
        ("invalid_targets", |c| &c.invalid_targets),
        ("discovery_failures", |c| &c.discovery_failures),
    ];
    for (family, counter) in families {
        let _ = writeln!(out, "# TYPE collector_scrape_{family}_total counter");
        for (name, counters) in sources {
            let n = counter(counters).load(Relaxed);
            let _ = writeln!(out, "collector_scrape_{family}_total{{source=\"{name}\"}} {n}");
        }
    }
}
