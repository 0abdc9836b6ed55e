//! How many series a tenant may have: in all, of one metric, and by the values of one label.
//!
//! Every way by which points come into the store passes here: what a push protocol takes, scrapes, what is read from this
//! machine, what rules record. A series counts while it is *active*: a point of it arrived within
//! [`SeriesLimits::active_for`]. Points of a series that would be one too many are left out and told; a series that is
//! active, or that the store knows of today, is never refused. Without limits nothing is counted and nothing held.
//!
//! Not for rates or log streams: those are checked where a request comes in.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::Int64Type,
};
use parking_lot::Mutex;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    AppendError,
    config::{SeriesLimits, SeriesLimitsByTenant},
    metrics::MetricLine,
    model::{Labels, Table, TenantId, time::MILLIS_PER_DAY},
};

/// What is told one by one of one append; more is only counted.
const OFFENDERS_MAX: usize = 5;

/// Bytes of the label set that an offender is shown with.
const SAMPLE_BYTES_MAX: usize = 512;

/// One line in the log for each tenant in this time, however much is refused.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// A limit on series. The names are keys of the configuration and label values of our own metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SeriesLimit {
    Series,
    SeriesPerMetric,
    LabelValues,
    LabelValuesPerMetric,
}

impl SeriesLimit {
    pub const ALL: [SeriesLimit; 4] = [
        SeriesLimit::Series,
        SeriesLimit::SeriesPerMetric,
        SeriesLimit::LabelValues,
        SeriesLimit::LabelValuesPerMetric,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            SeriesLimit::Series => "series",
            SeriesLimit::SeriesPerMetric => "series_per_metric",
            SeriesLimit::LabelValues => "label_values",
            SeriesLimit::LabelValuesPerMetric => "label_values_per_metric",
        }
    }
}

/// What stands at its limit, with the first new series that was refused for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offender {
    pub limit: SeriesLimit,
    pub max: usize,
    /// How many there are.
    pub active: usize,
    /// Metric name; `None` where the limit is the tenant's.
    pub metric: Option<String>,
    /// Label name; `None` where the limit is on series.
    pub label: Option<String>,
    /// Labels of the first series that was refused, perhaps cut.
    pub sample: String,
}

impl std::fmt::Display for Offender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Offender { limit, max, active, metric, label, sample } = self;
        write!(f, "limit `{}` of {max} reached", limit.name())?;
        match (metric, label) {
            (None, None) => write!(f, ": {active} active series")?,
            (Some(metric), None) => write!(f, " by metric {metric}: {active} active series")?,
            (None, Some(label)) => write!(f, " by label {label}: {active} values")?,
            (Some(metric), Some(label)) => write!(f, " by label {label} of metric {metric}: {active} values")?,
        }
        write!(f, "; refused {sample}")
    }
}

/// What was left out of an append because of its tenant's limits on series, or because its time has another value. All other
/// rows are stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// New series over a limit.
    pub series: usize,
    /// Rows, for either reason.
    pub samples: usize,
    pub histograms: usize,
    pub exemplars: usize,
    /// The first of different kinds.
    pub offenders: Vec<Offender>,
    /// Of the samples and histograms, those at a time that has another value; see [`crate::Repeats::Refused`].
    pub repeated: usize,
    /// The first of these.
    pub repeat: Option<String>,
}

impl Refused {
    /// Rows of all kinds.
    pub fn rows(&self) -> usize {
        self.samples + self.histograms + self.exemplars
    }

    /// Of them, those of series over a limit.
    pub fn over_limit(&self) -> usize {
        self.rows() - self.repeated
    }

    /// Both together, for batches of one request.
    pub fn join(&mut self, other: Refused) {
        self.series += other.series;
        self.samples += other.samples;
        self.histograms += other.histograms;
        self.exemplars += other.exemplars;
        self.repeated += other.repeated;
        self.repeat = self.repeat.take().or(other.repeat);
        for offender in other.offenders {
            self.name(offender);
        }
    }

    fn name(&mut self, offender: Offender) {
        let same =
            |o: &Offender| (o.limit, &o.metric, &o.label) == (offender.limit, &offender.metric, &offender.label);
        if self.offenders.len() < OFFENDERS_MAX && !self.offenders.iter().any(same) {
            self.offenders.push(offender);
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(repeat) = &self.repeat {
            f.write_str(repeat)?;
            if self.repeated > 1 {
                write!(f, " ({} points like it)", self.repeated)?;
            }
            if self.over_limit() == 0 {
                return Ok(());
            }
            f.write_str("; ")?;
        }
        write!(f, "{} points of {} new series refused", self.over_limit(), self.series)?;
        for offender in &self.offenders {
            write!(f, "; {offender}")?;
        }
        f.write_str("; use fewer label values, or raise `tenants` in the configuration")
    }
}

/// The limits of all tenants and what they have.
#[derive(Debug)]
pub(crate) struct Cardinality {
    limits: SeriesLimitsByTenant,
    guards: Mutex<HashMap<TenantId, Arc<Guard>>>,
    /// Monotonic.
    swept: Mutex<Duration>,
}

impl Cardinality {
    pub fn new(limits: SeriesLimitsByTenant) -> Self {
        Cardinality { limits, guards: Mutex::default(), swept: Mutex::default() }
    }

    /// `None`: the tenant has no limits. There are no more tenants than tables.
    pub fn of(&self, tenant: &TenantId) -> Option<Arc<Guard>> {
        let limits = self.limits.of(tenant);
        if limits.is_none() {
            return None;
        }
        let mut guards = self.guards.lock();
        if let Some(guard) = guards.get(tenant) {
            return Some(guard.clone());
        }
        let guard = Arc::new(Guard::new(tenant.clone(), limits.clone()));
        guards.insert(tenant.clone(), guard.clone());
        Some(guard)
    }

    fn all(&self) -> Vec<Arc<Guard>> {
        self.guards.lock().values().cloned().collect()
    }

    /// Forgets what is active no more, as often as that is of use. `now`: monotonic.
    pub fn sweep_if_due(&self, now: Duration) {
        let mut swept = self.swept.lock();
        if now.saturating_sub(*swept) < self.limits.sweep_every() {
            return;
        }
        *swept = now;
        drop(swept);
        self.all().iter().for_each(|g| g.sweep(now));
    }

    /// Of tenants that have limits and were heard of; lines of one name follow each other.
    pub fn lines(&self) -> Vec<MetricLine> {
        let mut guards = self.all();
        guards.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        let active = guards.iter().map(|g| MetricLine {
            name: "storage_series_active",
            help: "Metric series that count towards the tenant's limits.",
            kind: "gauge",
            labels: vec![("tenant", g.tenant.to_string())],
            value: g.active.lock().seen.len() as f64,
        });
        let refused = guards.iter().flat_map(|g| {
            SeriesLimit::ALL.map(|limit| MetricLine {
                name: "storage_series_points_refused_total",
                help: "Points of new series that were left out because of a limit of the tenant.",
                kind: "counter",
                labels: vec![("tenant", g.tenant.to_string()), ("limit", limit.name().to_owned())],
                value: g.refused[limit as usize].load(Ordering::Relaxed) as f64,
            })
        });
        active.chain(refused).collect()
    }
}

/// One tenant.
#[derive(Debug)]
pub(crate) struct Guard {
    pub tenant: TenantId,
    pub limits: SeriesLimits,
    active: Mutex<Active>,
    /// Points, by limit.
    refused: [AtomicU64; SeriesLimit::ALL.len()],
    /// When the log was last told (monotonic), and points since.
    logged: Mutex<(Option<Duration>, u64)>,
}

/// The series that were refused, each with the limit it is over, and the offenders among those limits.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub over: HashMap<i64, SeriesLimit>,
    pub refused: Refused,
}

impl Guard {
    pub fn new(tenant: TenantId, limits: SeriesLimits) -> Self {
        Guard {
            tenant,
            limits,
            active: Mutex::default(),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            logged: Mutex::default(),
        }
    }

    /// The series that are not active, in their order; the others are active from now on again. One look-up each.
    pub fn touch(&self, ids: impl IntoIterator<Item = i64>, now: Duration) -> Vec<i64> {
        let at = seconds(now);
        let mut active = self.active.lock();
        let (mut unknown, mut told) = (Vec::new(), HashSet::new());
        for id in ids {
            match active.seen.get_mut(&id) {
                Some(seen) => seen.at = at,
                None if told.insert(id) => unknown.push(id),
                None => {}
            }
        }
        unknown
    }

    /// Takes series that are not active within the limits. `known`: the store has it, so that it passes whatever the
    /// limits; so does one without `labels`, which is somebody else's error to tell.
    pub fn register<L: AsRef<Labels>>(
        &self,
        series: impl Iterator<Item = i64>,
        now: Duration,
        known: impl Fn(i64) -> bool,
        labels: impl Fn(i64) -> Option<L>,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let mut active = self.active.lock();
        for id in series {
            let Some(labels) = labels(id) else { continue };
            let labels = labels.as_ref();
            if !known(id)
                && !active.seen.contains_key(&id)
                && let Some(offender) = active.over(labels, &self.limits)
            {
                verdict.over.insert(id, offender.limit);
                verdict.refused.series += 1;
                verdict.refused.name(offender);
                continue;
            }
            active.enter(id, labels, seconds(now), &self.limits);
        }
        verdict
    }

    /// Counts points that were left out, and says so in the log now and then.
    pub fn refuse(&self, points: [u64; SeriesLimit::ALL.len()], refused: &Refused, now: Duration) {
        for (counter, n) in self.refused.iter().zip(points) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
        let mut logged = self.logged.lock();
        logged.1 += refused.rows() as u64;
        if logged.0.is_some_and(|at| now.saturating_sub(at) < LOG_EVERY) {
            return;
        }
        let points = std::mem::take(&mut logged.1);
        logged.0 = Some(now);
        drop(logged);
        tracing::warn!(tenant = %self.tenant, points, what = %refused, "points of new series refused");
    }

    /// Forgets series without a point since long.
    pub fn sweep(&self, now: Duration) {
        let (now, keep) = (seconds(now), seconds(self.limits.active_for));
        let mut active = self.active.lock();
        let active = &mut *active;
        let idle: Vec<i64> =
            active.seen.iter().filter(|(_, s)| now.saturating_sub(s.at) >= keep).map(|(id, _)| *id).collect();
        for id in idle {
            active.leave(id);
        }
        // After a burst the room is given back.
        if active.seen.capacity() > 4 * active.seen.len() + 1024 {
            active.seen.shrink_to_fit();
        }
    }
}

/// The series of an append's points, runs of one told once, and the days of the points.
pub(crate) fn series_of(rows: &[(Table, RecordBatch)]) -> Result<(Vec<i64>, HashSet<i64>), AppendError> {
    let (mut ids, mut days) = (Vec::new(), HashSet::new());
    for (table, batch) in rows.iter().filter(|(table, batch)| is_points(*table) && batch.num_rows() > 0) {
        super::rows::check_schema(*table, batch)?;
        ids.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
        let mut last = None;
        for ms in batch.column(1).as_primitive::<Int64Type>().values() {
            let day = ms.div_euclid(MILLIS_PER_DAY);
            if last != Some(day) {
                days.insert(day);
                last = Some(day);
            }
        }
    }
    ids.dedup();
    Ok((ids, days))
}

/// Labels of the series rows of an append as JSON, by id.
pub(crate) fn labels_of(rows: &[(Table, RecordBatch)]) -> HashMap<i64, &str> {
    let mut out = HashMap::new();
    for (table, batch) in rows {
        if *table == Table::MetricSeries && super::rows::check_schema(*table, batch).is_ok() {
            let ids = batch.column(0).as_primitive::<Int64Type>().values();
            let texts = batch.column(1).as_string::<i32>();
            out.extend(ids.iter().copied().zip(texts.iter().flatten()));
        }
    }
    out
}

/// Takes points of series that are over a limit out of an append. How many points, by limit.
pub(crate) fn leave_out(
    rows: &mut [(Table, RecordBatch)],
    over: &HashMap<i64, SeriesLimit>,
    refused: &mut Refused,
) -> [u64; SeriesLimit::ALL.len()] {
    let mut points = [0; SeriesLimit::ALL.len()];
    for (table, batch) in rows.iter_mut().filter(|(table, batch)| is_points(*table) && batch.num_rows() > 0) {
        let ids = batch.column(0).as_primitive::<Int64Type>().values();
        let keep: BooleanArray = ids.iter().map(|id| Some(!over.contains_key(id))).collect();
        for limit in ids.iter().filter_map(|id| over.get(id)) {
            points[*limit as usize] += 1;
        }
        let kept = filter_record_batch(batch, &keep).expect("the mask is as long as the rows");
        let out = batch.num_rows() - kept.num_rows();
        match table {
            Table::MetricSamples => refused.samples += out,
            Table::MetricHistograms => refused.histograms += out,
            _ => refused.exemplars += out,
        }
        *batch = kept;
    }
    points
}

fn is_points(table: Table) -> bool {
    matches!(table, Table::MetricSamples | Table::MetricHistograms | Table::MetricExemplars)
}

fn seconds(d: Duration) -> u32 {
    u32::try_from(d.as_secs()).unwrap_or(u32::MAX)
}

/// Active series. What no limit needs is not held. Names and values are held as hashes: two that share one would count as
/// one.
#[derive(Debug, Default)]
struct Active {
    seen: HashMap<i64, Seen>,
    /// Series of a metric.
    of_metric: HashMap<u64, u32>,
    pairs: Pairs,
    /// Distinct values of a label name.
    values: HashMap<u64, u32>,
    /// Series of (metric, pair), and distinct values of (metric, label name).
    metric_pairs: HashMap<(u64, u32), u32>,
    metric_values: HashMap<(u64, u64), u32>,
}

#[derive(Debug)]
struct Seen {
    metric: u64,
    /// When a point last arrived, seconds of the monotonic clock.
    at: u32,
    pairs: Box<[u32]>,
}

/// A label, known by a small number while a series has it.
#[derive(Debug, Default)]
struct Pairs {
    numbers: HashMap<u64, u32>,
    slots: Vec<Pair>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    hash: u64,
    name: u64,
    series: u32,
}

/// All labels but the metric's name, each with the hash of its name and of the pair.
fn hashed(labels: &Labels) -> impl Iterator<Item = (&str, u64, u64)> {
    labels.iter().filter(|(name, _)| *name != METRIC_NAME).map(|(name, value)| {
        let hash = xxh3_64(name.as_bytes());
        (name, hash, xxh3_64_with_seed(value.as_bytes(), hash))
    })
}

/// Labels for a message, perhaps cut.
pub(super) fn shown(labels: &Labels) -> String {
    let mut text = labels.to_string();
    if text.len() > SAMPLE_BYTES_MAX {
        text.truncate(text.floor_char_boundary(SAMPLE_BYTES_MAX));
        text.push_str("...");
    }
    text
}

const METRIC_NAME: &str = "__name__";

fn metric_of(labels: &Labels) -> &str {
    labels.get(METRIC_NAME).unwrap_or_default()
}

fn count<K: std::hash::Hash + Eq>(counts: &HashMap<K, u32>, key: &K) -> usize {
    counts.get(key).map_or(0, |n| *n as usize)
}

/// Adds one; whether it is the first.
fn more<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: K) -> bool {
    let n = counts.entry(key).or_default();
    *n += 1;
    *n == 1
}

/// Takes one away; whether it was the last.
fn fewer<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K) -> bool {
    let Some(n) = counts.get_mut(key) else { return false };
    *n -= 1;
    let last = *n == 0;
    if last {
        counts.remove(key);
    }
    last
}

impl Active {
    /// The first limit that a new series with these labels would be over.
    fn over(&self, labels: &Labels, limits: &SeriesLimits) -> Option<Offender> {
        let offender = |limit, max, active, metric: Option<&str>, label: Option<&str>| {
            let sample = shown(labels);
            let short = |text: &str| text[..text.floor_char_boundary(SAMPLE_BYTES_MAX)].to_owned();
            Some(Offender { limit, max, active, metric: metric.map(short), label: label.map(short), sample })
        };
        if let Some(max) = limits.series.filter(|max| self.seen.len() >= *max) {
            return offender(SeriesLimit::Series, max, self.seen.len(), None, None);
        }
        let name = metric_of(labels);
        let metric = xxh3_64(name.as_bytes());
        if let Some(max) = limits.series_per_metric {
            let active = count(&self.of_metric, &metric);
            if active >= max {
                return offender(SeriesLimit::SeriesPerMetric, max, active, Some(name), None);
            }
        }
        if limits.pairs() {
            for (label, hash, pair) in hashed(labels) {
                let known = self.pairs.numbers.get(&pair);
                if let Some(max) = limits.label_values.filter(|_| known.is_none()) {
                    let active = count(&self.values, &hash);
                    if active >= max {
                        return offender(SeriesLimit::LabelValues, max, active, None, Some(label));
                    }
                }
                if let Some(max) = limits.label_values_per_metric
                    && known.is_none_or(|pair| !self.metric_pairs.contains_key(&(metric, *pair)))
                {
                    let active = count(&self.metric_values, &(metric, hash));
                    if active >= max {
                        return offender(SeriesLimit::LabelValuesPerMetric, max, active, Some(name), Some(label));
                    }
                }
            }
        }
        None
    }

    fn enter(&mut self, id: i64, labels: &Labels, at: u32, limits: &SeriesLimits) {
        if let Some(seen) = self.seen.get_mut(&id) {
            seen.at = at;
            return;
        }
        let metric = xxh3_64(metric_of(labels).as_bytes());
        more(&mut self.of_metric, metric);
        let mut pairs = Vec::new();
        if limits.pairs() {
            for (_, name, hash) in hashed(labels) {
                let (pair, first) = self.pairs.take(name, hash);
                if first {
                    more(&mut self.values, name);
                }
                if limits.label_values_per_metric.is_some() && more(&mut self.metric_pairs, (metric, pair)) {
                    more(&mut self.metric_values, (metric, name));
                }
                pairs.push(pair);
            }
        }
        self.seen.insert(id, Seen { metric, at, pairs: pairs.into_boxed_slice() });
    }

    fn leave(&mut self, id: i64) {
        let Some(Seen { metric, pairs, .. }) = self.seen.remove(&id) else { return };
        fewer(&mut self.of_metric, &metric);
        for pair in pairs {
            let name = self.pairs.slots[pair as usize].name;
            if fewer(&mut self.metric_pairs, &(metric, pair)) {
                fewer(&mut self.metric_values, &(metric, name));
            }
            if self.pairs.give_back(pair) {
                fewer(&mut self.values, &name);
            }
        }
    }
}

impl Pairs {
    /// Its number, and whether no series had it.
    fn take(&mut self, name: u64, hash: u64) -> (u32, bool) {
        if let Some(number) = self.numbers.get(&hash) {
            self.slots[*number as usize].series += 1;
            return (*number, false);
        }
        let pair = Pair { hash, name, series: 1 };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = pair;
                number
            }
            None => {
                self.slots.push(pair);
                (self.slots.len() - 1) as u32
            }
        };
        self.numbers.insert(hash, number);
        (number, true)
    }

    /// Whether no series has it any more.
    fn give_back(&mut self, number: u32) -> bool {
        let pair = &mut self.slots[number as usize];
        pair.series -= 1;
        let last = pair.series == 0;
        if last {
            self.numbers.remove(&pair.hash);
            self.free.push(number);
        }
        last
    }
}

#[cfg(test)]
#[path = "cardinality_tests.rs"]
mod tests;
