//! What one target exposed, turned into rows: labels as they are stored, limits, staleness, and what is remembered from
//! scrape to scrape so that a series costs its relabelling once.
//!
//! Follows Prometheus 3: a series that was there and is not gets a stale marker; one with a time of its own does not,
//! unless `track_timestamps_staleness`; a scrape that fails in any line counts as one that exposed nothing.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use pipeline::codec::{
    prom_text::{self, DecodeError, Family, Format, Label, Point, Sample},
    stream,
};
use storage::model::{
    Labels, MetricBatch, MetricBatchBuilder,
    batch::{HistogramRow, SeriesMeta},
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    job::Job,
    target::{Target, Told},
};

/// The value of a series from here on: none. Its bits tell it from NaN.
pub const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// Rows of one batch.
const BATCH_ROWS_MAX: usize = 65_536;
/// Characters of an exemplar's labels (OpenMetrics).
const EXEMPLAR_CHARS_MAX: usize = 128;
/// Bytes of a help text that are kept.
const HELP_BYTES_MAX: usize = 4096;
/// Milliseconds ahead of us that a sample's own time may be.
const AHEAD_MS_MAX: i64 = 600_000;
/// Entries beyond twice those of the last good scrape at which the cache is cleaned all the same.
const CACHE_SLACK: usize = 100_000;
/// Families remembered of a target.
const FAMILIES_MAX: usize = 20_000;

/// Why a body was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{0}")]
    Refused(String),
}

/// A series as it is stored.
struct Series {
    id: i64,
    json: String,
    metric: String,
    job: Option<String>,
    instance: Option<String>,
    metric_type: Option<&'static str>,
    unit: Option<String>,
    help: Option<String>,
    /// A native histogram is ended by a histogram.
    is_histogram: bool,
}

impl Series {
    fn of(labels: &Labels, family: Option<&Family<'_>>, is_histogram: bool) -> Series {
        let json = labels.to_json();
        let owned = |name: &str| labels.get(name).map(str::to_owned);
        Series {
            id: storage::model::labels::id_of_json(&json),
            metric: owned("__name__").unwrap_or_default(),
            job: owned("job"),
            instance: owned("instance"),
            json,
            metric_type: family.and_then(|f| f.metric_type),
            unit: family.and_then(|f| f.unit.as_deref()).map(str::to_owned),
            help: family
                .and_then(|f| f.help.as_deref())
                .map(|h| pipeline::codec::outcome::clip(h.to_owned(), HELP_BYTES_MAX)),
            is_histogram,
        }
    }

    fn declare(&self, rows: &mut MetricBatchBuilder) -> i64 {
        let meta = SeriesMeta {
            metric_type: self.metric_type,
            unit: self.unit.as_deref(),
            help: self.help.as_deref(),
            origin: None,
        };
        rows.series_of_json(&self.json, &self.metric, self.job.as_deref(), self.instance.as_deref(), meta)
    }

    fn end(&self, rows: &mut MetricBatchBuilder, ts_ms: i64) {
        let id = self.declare(rows);
        if self.is_histogram {
            rows.histogram(id, ts_ms, None, &HistogramRow { sum: STALE, ..HistogramRow::default() });
        } else {
            rows.sample(id, ts_ms, None, STALE);
        }
    }
}

/// What a line of the body was the last times.
struct Known {
    /// `None`: relabelling drops it.
    series: Option<Arc<Series>>,
    seen: u64,
    /// Time and hash of the exemplar stored last.
    exemplar: (i64, u64),
}

/// Hashes a line's bytes; takes an id, a hash already, for what it is.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_usize(&mut self, _length: usize) {}

    fn write_i64(&mut self, id: i64) {
        self.0 = id as u64;
    }
}

type ById = HashMap<i64, Arc<Series>, BuildHasherDefault<Hashed>>;

/// One target's memory.
pub struct Memory {
    job: Arc<Job>,
    target: Arc<Target>,
    known: HashMap<Box<[u8]>, Known, BuildHasherDefault<Hashed>>,
    /// Series with a sample of this scrape and of the one before.
    current: ById,
    previous: ById,
    /// Counts attempts.
    scrape: u64,
    /// Entries after the last good scrape.
    good: usize,
    reports: Vec<Arc<Series>>,
}

/// What a scrape brought.
#[derive(Default)]
pub struct Taken {
    batches: Vec<MetricBatch>,
    /// The last of them, under way.
    rows: MetricBatchBuilder,
    /// Rows in `rows`.
    exemplars: usize,
    /// Samples exposed.
    pub scraped: u64,
    /// Those left after relabelling.
    pub kept: u64,
    /// Series that were not known.
    pub added: u64,
    pub stale: u64,
    /// Samples of a series that had one at that time already.
    pub duplicates: u64,
    /// Samples with a time of their own that is too far ahead.
    pub ahead: u64,
    pub exemplars_refused: u64,
    /// Classic histograms that stay so since they are none.
    pub not_converted: u64,
}

impl Taken {
    pub fn finish(mut self) -> Vec<MetricBatch> {
        self.flush();
        self.batches
    }

    fn flush(&mut self) {
        if !self.rows.is_empty() || self.exemplars > 0 {
            self.batches.push(self.rows.finish());
            self.exemplars = 0;
        }
    }
}

/// What we say of a scrape ourselves.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub up: bool,
    pub seconds: f64,
    /// Uncompressed; 0 of a failed scrape, -1 of a body over its limit.
    pub body_bytes: f64,
}

const REPORTS: [(&str, &str); 5] = [
    ("up", "Health of the scraped target. 1 means the target is healthy, 0 if the scrape failed."),
    ("scrape_duration_seconds", "Duration of the last scrape in seconds."),
    ("scrape_samples_scraped", "Number of samples the target exposed."),
    ("scrape_samples_post_metric_relabeling", "Number of samples remaining after metric relabeling was applied."),
    ("scrape_series_added", "The approximate number of new series in this scrape."),
];

/// Behind `extra_scrape_metrics`.
const EXTRA_REPORTS: [(&str, &str); 3] = [
    ("scrape_timeout_seconds", "The configured scrape timeout for a target."),
    (
        "scrape_sample_limit",
        "The configured sample limit for a target. Returns zero if there is no limit configured.",
    ),
    (
        "scrape_body_size_bytes",
        "The uncompressed size of the last scrape response, if successful. -1 if it was larger than the limit.",
    ),
];

impl Memory {
    pub fn new(job: Arc<Job>, target: Arc<Target>) -> Memory {
        let extra: &[(&str, &str)] = if job.extra_metrics { &EXTRA_REPORTS } else { &[] };
        let series = |(name, help): &(&str, &'static str)| {
            let mut labels = target.labels.clone();
            labels.set("__name__", *name);
            let family = Family {
                name: (*name).into(),
                metric_type: Some("gauge"),
                help: Some((*help).into()),
                unit: name.ends_with("_seconds").then(|| "seconds".into()),
            };
            Arc::new(Series::of(&labels, Some(&family), false))
        };
        let reports = REPORTS.iter().chain(extra).map(series).collect();
        Memory {
            job,
            target,
            known: HashMap::default(),
            current: ById::default(),
            previous: ById::default(),
            scrape: 1,
            good: 0,
            reports,
        }
    }

    /// Rows of a body, and the ends of series that are not in it. After an error nothing counts; [`Memory::nothing`] ends
    /// all series then. `now_ms`: the time of the scrape. `Taken` of an error tells what was there.
    pub fn take(&mut self, body: &[u8], format: Format, now_ms: i64) -> (Taken, Result<(), ScrapeError>) {
        let mut scrape = Scrape { taken: Taken::default(), over_limit: None, now_ms };
        self.scrape += 1;
        let job = self.job.clone();
        let read = prom_text::decode(body, format, job.options, &mut |sample: &Sample<'_>| {
            scrape.sample(self, &job, sample)
        });
        let read = match scrape.over_limit.take() {
            Some(message) if read.is_ok() => Err(ScrapeError::Refused(message)),
            _ => read,
        };
        let read = read.map(|told| scrape.taken.not_converted = told.not_converted);
        if read.is_err() {
            self.current.clear();
            scrape.taken.batches.clear();
            scrape.taken.rows = MetricBatchBuilder::new();
            scrape.taken.exemplars = 0;
            return (scrape.taken, read);
        }
        self.end_vanished(&mut scrape.taken, now_ms);
        self.forget();
        (scrape.taken, Ok(()))
    }

    /// After a scrape that brought nothing: every series ends.
    pub fn nothing(&mut self, taken: &mut Taken, now_ms: i64) {
        self.current.clear();
        self.end_vanished(taken, now_ms);
    }

    fn end_vanished(&mut self, taken: &mut Taken, now_ms: i64) {
        for (id, series) in &self.previous {
            if !self.current.contains_key(id) {
                series.end(&mut taken.rows, now_ms);
                taken.stale += 1;
            }
        }
        std::mem::swap(&mut self.previous, &mut self.current);
        self.current.clear();
    }

    /// After a good scrape: what was not in it is forgotten.
    fn forget(&mut self) {
        let now = self.scrape;
        self.known.retain(|_, k| k.seen == now);
        self.good = self.known.len();
    }

    /// Failed scrapes of ever other series must not fill the memory.
    fn bound(&mut self) {
        if self.known.len() > self.good * 2 + CACHE_SLACK {
            self.known.clear();
        }
    }

    /// Adds our own series of a scrape.
    pub fn report(&mut self, taken: &mut Taken, report: &Report, ts_ms: i64) {
        self.bound();
        let limit = self.job.limits.samples.unwrap_or(0);
        let values = [
            f64::from(u8::from(report.up)),
            report.seconds,
            taken.scraped as f64,
            taken.kept as f64,
            taken.added as f64,
            self.target.timeout.as_secs_f64(),
            limit as f64,
            report.body_bytes,
        ];
        for (series, value) in self.reports.iter().zip(values) {
            let id = series.declare(&mut taken.rows);
            taken.rows.sample(id, ts_ms, None, value);
        }
    }

    /// The target is gone: all its series end, ours included.
    pub fn gone(&mut self, ts_ms: i64) -> Taken {
        let mut taken = Taken::default();
        self.nothing(&mut taken, ts_ms);
        for series in &self.reports {
            series.end(&mut taken.rows, ts_ms);
        }
        taken
    }
}

/// One body under way.
struct Scrape {
    taken: Taken,
    /// A limit was met; the rest is counted all the same.
    over_limit: Option<String>,
    now_ms: i64,
}

impl Scrape {
    fn sample(&mut self, memory: &mut Memory, job: &Job, sample: &Sample<'_>) -> Result<(), ScrapeError> {
        self.taken.scraped += 1;
        let own_ms = sample.ts_ms.filter(|_| job.honor_timestamps);
        let scrape = memory.scrape;
        let is_histogram = matches!(sample.point, Point::Histogram(_));
        let mut repeated = false;
        let mut new = false;
        let series = match memory.known.get_mut(sample.key) {
            Some(known) if known.series.as_ref().is_none_or(|s| s.is_histogram == is_histogram) => {
                repeated = known.seen == scrape;
                known.seen = scrape;
                known.series.clone()
            }
            _ => {
                let series = self.series(&memory.target, job, sample, is_histogram)?;
                if let (Some(family), true) = (sample.family, series.is_some()) {
                    tell(&memory.target, family);
                }
                let known = Known { series: series.clone(), seen: scrape, exemplar: (i64::MIN, 0) };
                memory.known.insert(sample.key.into(), known);
                new = series.is_some();
                series
            }
        };
        let Some(series) = series else { return Ok(()) };
        self.taken.kept += 1;
        let mut coarser = None;
        if let Point::Histogram(row) = sample.point {
            match job.resolution.fit(row) {
                Ok(fitting) => coarser = fitting,
                Err(()) => {
                    self.refuse(|| {
                        format!("histogram bucket limit exceeded: {} has too many buckets", series.metric)
                    });
                    return Ok(());
                }
            }
        }
        if let Some(limit) = job.limits.samples.filter(|l| self.taken.kept > *l) {
            self.refuse(|| format!("sample limit exceeded: more than {limit} samples after relabelling"));
            return Ok(());
        }
        self.taken.added += u64::from(new);
        let tracked = own_ms.is_none() || job.track_timestamps_staleness;
        // Two lines may be one series after relabelling.
        let again = tracked && memory.current.contains_key(&series.id);
        if own_ms.is_none() && (repeated || again) {
            self.taken.duplicates += 1;
            return Ok(());
        }
        if tracked && !again {
            memory.current.insert(series.id, series.clone());
        }
        let ts_ms = own_ms.unwrap_or(self.now_ms);
        if ts_ms > self.now_ms.saturating_add(AHEAD_MS_MAX) {
            self.taken.ahead += 1;
            return Ok(());
        }
        let id = series.declare(&mut self.taken.rows);
        match sample.point {
            Point::Value(value) => self.taken.rows.sample(id, ts_ms, sample.start_ms, value),
            Point::Histogram(row) => {
                self.taken.rows.histogram(id, ts_ms, sample.start_ms, coarser.as_ref().unwrap_or(row));
            }
        }
        if !sample.exemplars.is_empty() {
            self.exemplars(memory, id, ts_ms, sample);
        }
        if self.taken.rows.len() >= BATCH_ROWS_MAX {
            self.taken.flush();
        }
        Ok(())
    }

    /// The scrape is over a limit.
    #[cold]
    fn refuse(&mut self, why: impl FnOnce() -> String) {
        self.over_limit.get_or_insert_with(why);
    }

    /// The series of exposed labels; `None`: relabelling drops it.
    fn series(
        &self,
        target: &Target,
        job: &Job,
        sample: &Sample<'_>,
        is_histogram: bool,
    ) -> Result<Option<Arc<Series>>, ScrapeError> {
        let exposed = sample.labels;
        for (i, (name, _)) in exposed.iter().enumerate() {
            if exposed[..i].iter().any(|(n, _)| n == name) {
                let metric = &exposed[0].1;
                return Err(ScrapeError::Refused(format!("label name {name:?} of {metric:?} is not unique")));
            }
        }
        let mut labels = merge(exposed, &target.labels, job.honor_labels);
        if !job.metric_relabel.iter().all(|rule| rule.apply(&mut labels)) || labels.is_empty() {
            return Ok(None);
        }
        let Some(metric) = labels.get("__name__") else {
            return Err(ScrapeError::Refused(format!("missing metric name (__name__ label) in {labels}")));
        };
        if job.legacy_names && !(is_legacy(metric, true) && labels.iter().all(|(n, _)| is_legacy(n, false))) {
            return Err(ScrapeError::Refused(format!("invalid metric name or label names: {labels}")));
        }
        check_limits(&labels, job)?;
        Ok(Some(Arc::new(Series::of(&labels, sample.family, is_histogram))))
    }

    fn exemplars(&mut self, memory: &mut Memory, id: i64, ts_ms: i64, sample: &Sample<'_>) {
        let Some(known) = memory.known.get_mut(sample.key) else { return };
        for exemplar in sample.exemplars {
            let chars: usize = exemplar.labels.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
            // Several of one histogram are told apart by their times, as in Prometheus.
            let untimed = matches!(sample.point, Point::Histogram(_)) && exemplar.ts_ms.is_none();
            if chars > EXEMPLAR_CHARS_MAX || untimed {
                self.taken.exemplars_refused += 1;
                continue;
            }
            let (mut trace, mut span) = (None, None);
            let mut rest: Vec<(&str, &str)> = Vec::new();
            // What its column gives back exactly needs no second place.
            for (name, value) in &exemplar.labels {
                let bytes = value.as_bytes();
                match &**name {
                    "trace_id" if stream::is_canonical_hex(bytes) => trace = stream::parse_hex::<16>(bytes),
                    "span_id" if stream::is_canonical_hex(bytes) => span = stream::parse_hex::<8>(bytes),
                    _ => {}
                }
                let kept = matches!((&**name, &trace, &span), ("trace_id", Some(_), _) | ("span_id", _, Some(_)));
                if !kept {
                    rest.push((name, value));
                }
            }
            let json = Labels::from_pairs(rest).to_json();
            let mut identity = json.clone().into_bytes();
            identity.extend(trace.iter().flatten());
            identity.extend(span.iter().flatten());
            identity.extend(exemplar.value.to_bits().to_le_bytes());
            let hash = xxh3_64(&identity);
            let at = exemplar.ts_ms.unwrap_or(ts_ms);
            // The same one is exposed until there is another.
            let told = known.exemplar.1 == hash || exemplar.ts_ms.is_some_and(|ms| ms <= known.exemplar.0);
            if told || at > self.now_ms.saturating_add(AHEAD_MS_MAX) {
                continue;
            }
            known.exemplar = (at, hash);
            self.taken.exemplars += 1;
            let (trace, span) = (trace.as_ref().map(|t| &t[..]), span.as_ref().map(|s| &s[..]));
            self.taken.rows.exemplar(id, at, exemplar.value, trace, span, &json);
        }
    }
}

/// Remembers what a family is, for the API.
fn tell(target: &Target, family: &Family<'_>) {
    let mut families = target.families.lock();
    if families.len() >= FAMILIES_MAX && !families.contains_key(&*family.name) {
        return;
    }
    let text = |t: &Option<std::borrow::Cow<'_, str>>| t.as_deref().unwrap_or_default().to_owned();
    let told = Told {
        metric_type: family.metric_type.unwrap_or("unknown"),
        help: pipeline::codec::outcome::clip(text(&family.help), HELP_BYTES_MAX),
        unit: text(&family.unit),
    };
    families.insert(family.name.clone().into_owned(), told);
}

/// Exposed labels with the target's. Where both have one, the target's counts and the exposed one is kept as
/// `exported_...`; with `honor` the exposed one counts, also an empty one.
fn merge(exposed: &[Label<'_>], target: &Labels, honor: bool) -> Labels {
    let mut out: Labels = exposed.iter().map(|(n, v)| (&**n, &**v)).collect();
    if honor {
        for (name, value) in target.iter() {
            if !exposed.iter().any(|(n, _)| n == name) {
                out.set(name, value);
            }
        }
        return out;
    }
    let mut conflicting: Vec<(String, String)> = Vec::new();
    for (name, value) in target.iter() {
        if let Some(exposed) = out.get(name) {
            conflicting.push((name.to_owned(), exposed.to_owned()));
        }
        out.set(name, value);
    }
    conflicting.sort_by_key(|(n, _)| n.len());
    for (name, value) in conflicting {
        let mut free = name;
        loop {
            free = format!("exported_{free}");
            if out.get(&free).is_none() {
                break;
            }
        }
        out.set(&free, value);
    }
    out
}

fn is_legacy(name: &str, metric: bool) -> bool {
    let start = |b: u8| b.is_ascii_alphabetic() || b == b'_' || metric && b == b':';
    name.bytes().enumerate().all(|(i, b)| start(b) || i > 0 && b.is_ascii_digit()) && !name.is_empty()
}

fn check_limits(labels: &Labels, job: &Job) -> Result<(), ScrapeError> {
    let metric = || labels.get("__name__").unwrap_or_default().chars().take(50).collect::<String>();
    let limits = &job.limits;
    if let Some(limit) = limits.labels.filter(|l| labels.len() as u64 > *l) {
        let (metric, n) = (metric(), labels.len());
        return Err(ScrapeError::Refused(format!(
            "label_limit exceeded (metric: {metric}, number of labels: {n}, limit: {limit})"
        )));
    }
    for (name, value) in labels.iter() {
        for (what, text, limit) in [("name", name, limits.name_bytes), ("value", value, limits.value_bytes)] {
            if let Some(limit) = limit.filter(|l| text.len() as u64 > *l) {
                let (metric, shown, n) = (metric(), text.chars().take(50).collect::<String>(), text.len());
                let message = format!(
                    "label_{what}_length_limit exceeded (metric: {metric}, label {what}: {shown}, length: {n}, limit: {limit})"
                );
                return Err(ScrapeError::Refused(message));
            }
        }
    }
    Ok(())
}
