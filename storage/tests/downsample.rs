//! Aggregates against the samples they are of: random appends (late ones too), flushes, merges, deletes and restarts on a disk
//! that fails. Whatever happens, hours that count as exact are just what the samples give, and once the disk is well every
//! hour is there, once.
//!
//! `SIGHTLINE_SEEDS=n` runs seeds 0..n, `SIGHTLINE_SEED=x` one of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arrow::{
    array::AsArray as _,
    datatypes::{Float64Type, Int64Type},
};
use storage::{
    Append, Environment, ScanRequest, Store, StoreConfig,
    config::RetentionRule,
    downsample::{Aggregate, Columns, HOUR_MS, Resolution, Rule, hour_of},
    model::{Labels, MatchOp, Matcher, MetricBatchBuilder, Table, TenantId, TimeRange, Timestamp, batch::SeriesMeta},
    vfs::sim::{Faults, Op, Rng, SimClock, SimVfs},
};

const BASE_MS: i64 = 1_767_225_600_000;
const STALE: u64 = 0x7ff0_0000_0000_0002;
const SERIES: [&str; 4] = ["a", "b", "c", "other"];

fn seeds(default: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("SIGHTLINE_SEED") {
        return vec![seed.parse().expect("SIGHTLINE_SEED is a number")];
    }
    let n = std::env::var("SIGHTLINE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    (0..n).collect()
}

fn rule(selector: Vec<Matcher>) -> Rule {
    let resolutions = Resolution::ALL.to_vec();
    Rule { tenant: None, selectors: vec![selector], resolutions, after: Duration::ZERO, auto: false }
}

fn config() -> StoreConfig {
    let mut config = StoreConfig::new("/store");
    config.background = false;
    config.wal_segment_bytes = 32 << 10;
    // One of four series is not aggregated.
    config.downsample.rules.push(rule(vec![Matcher::new("job", MatchOp::Re, "[a-c]").unwrap()]));
    config
}

async fn open(config: &StoreConfig, vfs: &SimVfs, clock: &Arc<SimClock>) -> Result<Store, storage::OpenError> {
    let env =
        Environment { vfs: Arc::new(vfs.clone()), clock: clock.clone(), lock_dir: false, ..Environment::default() };
    Store::open_on(config.clone(), env).await
}

fn labels(job: &str) -> Labels {
    Labels::from_pairs([("__name__", "requests_total"), ("job", job)])
}

async fn append(store: &Store, samples: &[(usize, i64, f64)]) -> Result<(), storage::AppendError> {
    let mut b = MetricBatchBuilder::new();
    for (series, ms, value) in samples {
        let id = b.series(&labels(SERIES[*series]), SeriesMeta::default());
        b.sample(id, *ms, None, *value);
    }
    let m = b.finish();
    let rows = vec![(Table::MetricSeries, m.series), (Table::MetricSamples, m.samples)];
    store.append(Append { tenant: TenantId::default_tenant(), rows, sources: vec![], batch_id: None }).await.map(drop)
}

/// Samples of the store by series and time, the later commit's value; `None` when they cannot be read.
async fn samples(store: &Store) -> Option<BTreeMap<(i64, i64), f64>> {
    let request = ScanRequest::new(TenantId::default_tenant(), Table::MetricSamples, TimeRange::ALL);
    let mut out = BTreeMap::new();
    for b in store.scan(request).await.ok()?.collect().await.ok()? {
        let int = |name: &str| b.column_by_name(name).unwrap().as_primitive::<Int64Type>().values().clone();
        let values = b.column_by_name("value").unwrap().as_primitive::<Float64Type>();
        for ((id, ms), v) in int("series_id").iter().zip(int("ts_ms").iter()).zip(values.values()) {
            out.insert((*id, *ms), *v);
        }
    }
    Some(out)
}

async fn aggregates(store: &Store, resolution: Resolution) -> Option<BTreeMap<(i64, i64), Aggregate>> {
    let request = ScanRequest::new(TenantId::default_tenant(), resolution.table(), TimeRange::ALL);
    let mut out = BTreeMap::new();
    for b in store.scan(request).await.ok()?.collect().await.ok()? {
        let columns = Columns::new(resolution, &b).unwrap();
        for i in 0..b.num_rows() {
            out.insert((columns.series[i], columns.row(i).end_ms), columns.row(i));
        }
    }
    Some(out)
}

/// The aggregates of samples, each bucket by looking at every sample of its series.
fn naive(
    samples: &BTreeMap<(i64, i64), f64>,
    aggregated: &BTreeSet<i64>,
    resolution: Resolution,
) -> BTreeMap<(i64, i64), Aggregate> {
    let mut buckets: BTreeMap<(i64, i64), Vec<(i64, f64)>> = BTreeMap::new();
    for ((id, ms), v) in samples.iter().filter(|((id, _), _)| aggregated.contains(id)) {
        let end = (ms + resolution.millis() - 1).div_euclid(resolution.millis()) * resolution.millis();
        buckets.entry((*id, end)).or_default().push((*ms, *v));
    }
    let aggregate = |end_ms: i64, all: &[(i64, f64)]| {
        let newest = all[all.len() - 1];
        let real: Vec<(i64, f64)> = all.iter().copied().filter(|s| s.1.to_bits() != STALE).collect();
        let (first, last) = (
            real.first().copied().unwrap_or((newest.0, f64::NAN)),
            real.last().copied().unwrap_or((newest.0, f64::NAN)),
        );
        let numbers = || real.iter().map(|s| s.1).filter(|v| !v.is_nan());
        Aggregate {
            end_ms,
            count: real.len() as u64,
            // Whole numbers: exact in any order.
            sum: real.iter().fold(0.0, |sum, s| sum + s.1),
            min: numbers().reduce(f64::min).unwrap_or(f64::NAN),
            max: numbers().reduce(f64::max).unwrap_or(f64::NAN),
            first_ms: first.0,
            first: first.1,
            last_ms: last.0,
            last: last.1,
            lost: real.windows(2).filter(|w| w[1].1 < w[0].1).fold(0.0, |lost, w| lost + w[0].1),
            stale_ms: (newest.1.to_bits() == STALE).then_some(newest.0),
        }
    };
    buckets.into_iter().map(|((id, end), all)| ((id, end), aggregate(end, &all))).collect()
}

/// NaN is NaN, whatever its bits.
fn assert_same(
    found: impl IntoIterator<Item = ((i64, i64), Aggregate)>,
    wanted: impl IntoIterator<Item = ((i64, i64), Aggregate)>,
    what: &str,
) {
    let shown = |(key, a): ((i64, i64), Aggregate)| format!("{key:?} {a:?}");
    let found: BTreeSet<String> = found.into_iter().map(shown).collect();
    let wanted: BTreeSet<String> = wanted.into_iter().map(shown).collect();
    let (more, less) = (found.difference(&wanted).next(), wanted.difference(&found).next());
    assert!(more.is_none() && less.is_none(), "{what}: there is {more:?}, samples give {less:?}");
}

struct Run {
    rng: Rng,
    vfs: SimVfs,
    clock: Arc<SimClock>,
    config: StoreConfig,
    store: Store,
    aggregated: BTreeSet<i64>,
    made: usize,
    failed: usize,
}

impl Run {
    async fn step(&mut self) {
        self.clock.advance(Duration::from_millis(self.rng.below(900_000) as u64));
        match self.rng.below(100) {
            0..=39 => {
                let now = self.clock_ms();
                let late = if self.rng.chance(200) { self.rng.below(10 * 3_600_000) as i64 } else { 0 };
                let batch: Vec<(usize, i64, f64)> = (0..1 + self.rng.below(60))
                    .map(|_| {
                        let ms = now - late - self.rng.below(1_800_000) as i64;
                        // Full hours are where a bucket ends.
                        let ms = if self.rng.chance(100) { ms / HOUR_MS * HOUR_MS } else { ms };
                        let value = match self.rng.below(20) {
                            0 => f64::NAN,
                            1 => f64::from_bits(STALE),
                            n => (n * self.rng.below(1000)) as f64,
                        };
                        (self.rng.below(SERIES.len()), ms, value)
                    })
                    .collect();
                drop(append(&self.store, &batch).await); // may fail on this disk
            }
            40..=54 => drop(self.store.flush().await),
            55..=62 => drop(self.store.compact().await),
            63..=79 => match self.store.downsample().await {
                Ok(n) => self.made += n,
                Err(_) => self.failed += 1,
            },
            80..=83 => {
                let start = self.clock_ms() - self.rng.below(6 * 3_600_000) as i64;
                let end = start + 1 + self.rng.below(2 * 3_600_000) as i64;
                let range = TimeRange::new(Timestamp::from_millis(start), Timestamp::from_millis(end)).unwrap();
                let matchers = vec![Matcher::equal("job", SERIES[self.rng.below(SERIES.len())])];
                drop(self.store.delete_series(&TenantId::default_tenant(), matchers, range).await);
            }
            84..=86 => drop(self.store.checkpoint().await),
            87..=89 => {
                drop(self.store.abandon().await);
                self.reopen().await;
            }
            90..=93 => {
                self.vfs.cut_power_after(self.rng.below(40) as u64);
                drop(self.store.downsample().await);
                drop(self.store.compact().await);
                self.power_cut().await;
            }
            94..=97 => {
                let p = [5, 30, 150][self.rng.below(3)];
                self.vfs.set_faults(Faults { write: p, sync: p, name: p, read: p / 5, ..Faults::default() });
            }
            _ => self.heal(),
        }
    }

    fn clock_ms(&self) -> i64 {
        use storage::vfs::Clock;
        self.clock.now().millis()
    }

    fn heal(&self) {
        self.vfs.set_faults(Faults::default());
        for op in [Op::Read, Op::Append, Op::Sync, Op::SetLen, Op::Create, Op::Rename, Op::Remove, Op::SyncDir] {
            self.vfs.fail_next(op, 0);
        }
    }

    async fn power_cut(&mut self) {
        drop(self.store.abandon().await);
        self.vfs = self.vfs.crash();
        self.reopen().await;
    }

    async fn reopen(&mut self) {
        self.heal();
        self.store = match open(&self.config, &self.vfs, &self.clock).await {
            Ok(store) => store,
            Err(_) => {
                self.vfs = self.vfs.crash();
                open(&self.config, &self.vfs, &self.clock).await.expect("a store opens on a good disk")
            }
        };
    }

    /// Hours that count as exact are.
    async fn check(&self, at: &str) {
        let now = self.clock_ms();
        for resolution in Resolution::ALL {
            let tenant = TenantId::default_tenant();
            let hours: BTreeSet<i64> =
                self.store.downsampled(&tenant, resolution, 0, now, true).into_iter().collect();
            let (Some(samples), Some(found)) =
                (samples(&self.store).await, aggregates(&self.store, resolution).await)
            else {
                return; // the disk does not let us look
            };
            let of_hours = |key: &(i64, i64)| hours.contains(&hour_of(key.1));
            let wanted = naive(&samples, &self.aggregated, resolution).into_iter().filter(|(k, _)| of_hours(k));
            let found = found.into_iter().filter(|(k, _)| of_hours(k));
            assert_same(found, wanted, &format!("{at}: {resolution:?}"));
        }
    }
}

async fn run(seed: u64) -> (usize, usize) {
    let vfs = SimVfs::new(seed);
    let clock = Arc::new(SimClock::new(Timestamp::from_millis(BASE_MS)));
    let config = config();
    let store = open(&config, &vfs, &clock).await.unwrap();
    let aggregated =
        SERIES[..3].iter().map(|job| storage::model::labels::id_of_json(&labels(job).to_json())).collect();
    let mut run = Run { rng: Rng::new(seed ^ 0xd0), vfs, clock, config, store, aggregated, made: 0, failed: 0 };
    for step in 0..60 {
        run.step().await;
        if run.rng.chance(300) {
            run.heal();
            run.check(&format!("seed {seed} step {step}")).await;
        }
    }
    run.heal();
    run.reopen().await;
    run.store.flush().await.unwrap();
    run.clock.advance(Duration::from_secs(2 * 3600));
    run.made += run.store.downsample().await.unwrap();
    for merged in [false, true] {
        if merged {
            run.store.compact().await.unwrap();
        }
        let all = samples(&run.store).await.unwrap();
        for resolution in Resolution::ALL {
            let found = aggregates(&run.store, resolution).await.unwrap();
            let wanted = naive(&all, &run.aggregated, resolution);
            assert_same(found, wanted, &format!("seed {seed}, merged {merged}: {resolution:?}"));
        }
        assert_eq!(run.store.downsample().await.unwrap(), 0, "seed {seed}, merged {merged}: hours are made once");
    }
    (run.made, run.failed)
}

#[test]
fn aggregates_are_those_of_the_samples_whatever_the_disk_does() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (mut made, mut failed) = (0, 0);
    let all = seeds(40);
    for seed in &all {
        let (m, f) = runtime.block_on(run(*seed));
        made += m;
        failed += f;
    }
    eprintln!("{} seeds: {made} hours made, {failed} turns failed", all.len());
    assert!(all.len() < 40 || (made > 100 && failed > 0), "a run that met no fault would prove nothing");
}

#[tokio::test]
async fn aggregates_outlive_their_samples_by_their_own_retention() {
    let (vfs, clock) = (SimVfs::new(1), Arc::new(SimClock::new(Timestamp::from_millis(BASE_MS))));
    let mut config = config();
    let day = Duration::from_secs(86_400);
    for (table, days) in [(None, 2), (Some(Table::MetricSamples5m), 10), (Some(Table::MetricSamples1h), 30)] {
        config.retention.rules.push(RetentionRule { tenant: None, table, keep: day * days });
    }
    let store = open(&config, &vfs, &clock).await.unwrap();
    let tenant = TenantId::default_tenant();
    let batch: Vec<(usize, i64, f64)> =
        (0..24 * 60).map(|i| (0, BASE_MS + i64::from(i) * 60_000 + 1, f64::from(i))).collect();
    append(&store, &batch).await.unwrap();
    store.flush().await.unwrap();
    clock.advance(day + Duration::from_secs(7200));
    assert_eq!(store.downsample().await.unwrap(), 24);
    // `MetricSeries` goes by the first rule, and stays all the same.
    for (days, samples_left, fine, coarse) in
        [(3, false, true, true), (12, false, false, true), (40, false, false, false)]
    {
        clock.set(Timestamp::from_millis(BASE_MS + days * 86_400_000));
        store.expire().await.unwrap();
        assert_eq!(store.downsample().await.unwrap(), 0, "what has gone is not made again");
        assert_eq!(!samples(&store).await.unwrap().is_empty(), samples_left, "day {days}");
        assert_eq!(!aggregates(&store, Resolution::FiveMinutes).await.unwrap().is_empty(), fine, "day {days}");
        let hours = aggregates(&store, Resolution::Hour).await.unwrap();
        assert_eq!(hours.len(), if coarse { 24 } else { 0 }, "day {days}");
        let range = TimeRange::new(Timestamp::from_millis(BASE_MS), Timestamp::from_millis(BASE_MS + 1000)).unwrap();
        let series = store.series(&tenant, &[Matcher::equal("job", "a")], range).await.unwrap();
        assert_eq!(series.len(), usize::from(coarse), "day {days}");
    }
}

#[tokio::test]
async fn another_rule_makes_hours_anew() {
    let (vfs, clock) = (SimVfs::new(2), Arc::new(SimClock::new(Timestamp::from_millis(BASE_MS))));
    let mut config = config();
    let store = open(&config, &vfs, &clock).await.unwrap();
    append(&store, &[(0, BASE_MS + 1, 1.0), (3, BASE_MS + HOUR_MS, 5.0)]).await.unwrap();
    store.flush().await.unwrap();
    clock.advance(Duration::from_secs(7200));
    assert_eq!(store.downsample().await.unwrap(), 1);
    assert_eq!(aggregates(&store, Resolution::Hour).await.unwrap().len(), 1);
    store.close().await.unwrap();
    config.downsample.rules.push(rule(vec![Matcher::equal("job", "other")]));
    let store = open(&config, &vfs, &clock).await.unwrap();
    let tenant = TenantId::default_tenant();
    assert_eq!(store.downsampled(&tenant, Resolution::Hour, BASE_MS, BASE_MS + HOUR_MS, true), [] as [i64; 0]);
    assert_eq!(store.downsample().await.unwrap(), 1);
    assert_eq!(aggregates(&store, Resolution::Hour).await.unwrap().len(), 2);
    assert_eq!(store.downsampled(&tenant, Resolution::Hour, BASE_MS, BASE_MS + HOUR_MS, true).len(), 1);
}
