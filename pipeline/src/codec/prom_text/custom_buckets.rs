//! Classic histograms made native ones with custom buckets (`convert_classic_histograms_to_nhcb`).
//!
//! Of a text, the lines of a histogram's family are held until the family ends, so that those of one histogram (their
//! labels without `le`, and their time) need not stand together. A histogram that is none, since its counts go down, do not
//! agree with `_count` or are of no bound, stays as classic as it came, and is counted.

use std::{borrow::Cow, collections::HashMap};

use storage::model::batch::HistogramRow;

use super::{Exemplar, Family, Label, Options, Point, Sample};

/// Schema of custom bucket bounds.
const SCHEMA: i32 = -53;
/// Buckets of one histogram: more than any real one has.
const BUCKETS_MAX: usize = 65_536;
/// Lines held at a time. Of a longer family the histograms so far are told when the next one begins, or at twice as many.
const LINES_MAX: usize = 65_536;
/// Counts below this are integers where they have no fraction.
const INTEGER_MAX: f64 = 9.2e18;

/// What a classic histogram says.
#[derive(Debug, Default)]
pub(super) struct Classic {
    /// Upper bound and the count up to it.
    buckets: Vec<(f64, f64)>,
    count: Option<f64>,
    sum: f64,
    broken: bool,
}

fn is_whole(count: f64) -> bool {
    count.fract() == 0.0 && count < INTEGER_MAX
}

impl Classic {
    /// A bucket; `None`: its bound is not a number.
    pub fn bucket(&mut self, bound: Option<f64>, count: f64) {
        match bound.filter(|b| !b.is_nan()) {
            Some(bound) => self.buckets.push((bound, count)),
            None => self.broken = true,
        }
    }

    pub fn count(&mut self, count: f64) {
        self.count = Some(count);
    }

    pub fn sum(&mut self, sum: f64) {
        self.sum = sum;
    }

    /// The same with counts of each bucket alone; `None`: it is not a histogram.
    ///
    /// Without `_count`, the highest bucket tells it; without a bucket up to +Inf, the count does. Integers unless a count
    /// has a fraction. Source: Prometheus 3.
    pub fn convert(mut self) -> Option<HistogramRow> {
        if self.broken || self.buckets.len() > BUCKETS_MAX || self.count.is_none() && self.buckets.is_empty() {
            return None;
        }
        // Stable: of two buckets with one bound the first counts.
        self.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.buckets.dedup_by(|next, kept| next.0 == kept.0);
        let last = self.buckets.last().copied();
        let count = self.count.or(last.map(|(_, n)| n))?;
        if last.is_none_or(|(bound, _)| bound != f64::INFINITY) {
            self.buckets.push((f64::INFINITY, count));
        }
        let mut is_float = !is_whole(count);
        let mut below = 0.0;
        let mut counts = Vec::with_capacity(self.buckets.len());
        for (_, upto) in &self.buckets {
            if !(upto.is_finite() && *upto >= below) {
                return None;
            }
            is_float |= !is_whole(*upto);
            counts.push(upto - below);
            below = *upto;
        }
        if below != count {
            return None;
        }
        self.buckets.pop();
        Some(HistogramRow {
            schema: SCHEMA,
            count,
            sum: self.sum,
            positive_counts: counts,
            custom_bounds: Some(self.buckets.into_iter().map(|(bound, _)| bound).collect()),
            is_float,
            ..HistogramRow::default()
        })
    }
}

/// By time, those without one first: that is how they are told apart from scrape to scrape.
pub(super) fn sort(exemplars: &mut [Exemplar<'_>]) {
    exemplars.sort_by_key(|e| e.ts_ms);
}

/// A line with a sample.
pub(super) struct Line<'a> {
    pub key: &'a [u8],
    pub labels: Vec<Label<'a>>,
    pub value: f64,
    pub ts_ms: Option<i64>,
    pub exemplar: Option<Exemplar<'a>>,
}

/// What a line is of a histogram.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Part {
    /// `None`: without a bound.
    Bucket(Option<f64>),
    Count,
    Sum,
    Created,
}

#[derive(Default)]
struct Histogram<'a> {
    lines: Vec<Line<'a>>,
    classic: Classic,
    start_ms: Option<i64>,
}

/// Holds the lines of the histograms of one family.
#[derive(Default)]
pub(super) struct Holder<'a> {
    options: Options,
    family: Option<Family<'a>>,
    histograms: Vec<Histogram<'a>>,
    /// Places in `histograms` by labels and time.
    places: HashMap<Vec<u8>, usize>,
    /// Of the histogram at hand.
    place: usize,
    held: usize,
    /// Histograms that stay classic.
    pub not_converted: u64,
}

impl<'a> Holder<'a> {
    pub fn new(options: Options) -> Self {
        Holder { options, ..Holder::default() }
    }

    /// What a line is, if it shall be held.
    pub fn part(&self, family: Option<&Family<'_>>, labels: &[Label<'_>]) -> Option<Part> {
        if !self.options.custom_buckets {
            return None;
        }
        let family = family.filter(|f| f.metric_type == Some("histogram"))?;
        match labels.first()?.1.strip_prefix(&*family.name)? {
            "_bucket" => {
                let le = labels[1..].iter().find(|(name, _)| name == "le");
                Some(Part::Bucket(le.and_then(|(_, bound)| bound.parse().ok())))
            }
            "_count" => Some(Part::Count),
            "_sum" => Some(Part::Sum),
            "_created" => Some(Part::Created),
            _ => None,
        }
    }

    /// Takes since when a histogram counts; the line itself is not held.
    pub fn created(&mut self, family: &Family<'a>, labels: &[Label<'_>], ts_ms: Option<i64>, seconds: f64) {
        if self.histograms.len() >= LINES_MAX {
            return;
        }
        self.family.get_or_insert_with(|| family.clone());
        self.find(labels, ts_ms);
        self.histograms[self.place].start_ms = seconds.is_finite().then_some((seconds * 1000.0) as i64);
    }

    /// Takes a line of `family`.
    pub fn hold<E>(
        &mut self,
        family: &Family<'a>,
        part: Part,
        line: Line<'a>,
        take: &mut dyn FnMut(&Sample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let is_new = self.find(&line.labels, line.ts_ms);
        if self.held >= LINES_MAX && (is_new || self.held >= 2 * LINES_MAX) {
            self.flush(take)?;
            self.find(&line.labels, line.ts_ms);
        }
        self.family.get_or_insert_with(|| family.clone());
        let histogram = &mut self.histograms[self.place];
        match part {
            Part::Bucket(bound) => histogram.classic.bucket(bound, line.value),
            Part::Count => histogram.classic.count(line.value),
            Part::Sum => histogram.classic.sum(line.value),
            Part::Created => {}
        }
        histogram.lines.push(line);
        self.held += 1;
        Ok(())
    }

    /// Makes the histogram of these labels the one at hand. Whether it is new.
    fn find(&mut self, labels: &[Label<'_>], ts_ms: Option<i64>) -> bool {
        // Most lines follow one of their histogram, written alike.
        let at_hand = self.histograms.get(self.place).and_then(|h| h.lines.first());
        if at_hand.is_some_and(|l| l.ts_ms == ts_ms && own(&l.labels).eq(own(labels))) {
            return false;
        }
        let mut sorted: Vec<&Label<'_>> = own(labels).filter(|(_, value)| !value.is_empty()).collect();
        sorted.sort_unstable();
        let mut identity = written(sorted);
        identity.extend(ts_ms.map(i64::to_le_bytes).iter().flatten());
        let next = self.histograms.len();
        self.place = *self.places.entry(identity).or_insert(next);
        let is_new = self.place == next;
        if is_new {
            self.histograms.push(Histogram::default());
        }
        is_new
    }

    /// After a line that tells of a family, which is `at_hand`: tells what is held of another.
    pub fn turn<E>(
        &mut self,
        at_hand: Option<&Family<'_>>,
        take: &mut dyn FnMut(&Sample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let same = self.family.as_ref().is_none_or(|held| at_hand.is_some_and(|f| f.name == held.name));
        if same { Ok(()) } else { self.flush(take) }
    }

    /// Tells what is held.
    pub fn flush<E>(&mut self, take: &mut dyn FnMut(&Sample<'_>) -> Result<(), E>) -> Result<(), E> {
        let family = self.family.take();
        self.places.clear();
        self.held = 0;
        for histogram in std::mem::take(&mut self.histograms) {
            let Some(family) = family.as_ref().filter(|_| !histogram.lines.is_empty()) else { continue };
            let Histogram { mut lines, classic, start_ms } = histogram;
            match classic.convert() {
                Some(row) => {
                    tell(family, &mut lines, &row, start_ms, take)?;
                    if !self.options.classic_too {
                        continue;
                    }
                }
                None => self.not_converted += 1,
            }
            for line in &lines {
                take(&Sample {
                    key: line.key,
                    labels: &line.labels,
                    point: Point::Value(line.value),
                    ts_ms: line.ts_ms,
                    start_ms: None,
                    exemplars: line.exemplar.as_slice(),
                    family: Some(family),
                })?;
            }
        }
        Ok(())
    }
}

/// Labels of a histogram among those of one of its lines.
fn own<'l, 'a>(labels: &'l [Label<'a>]) -> impl Iterator<Item = &'l Label<'a>> {
    labels[1..].iter().filter(|(name, _)| name != "le")
}

/// Labels as bytes that no line has.
fn written<'l, 'a: 'l>(labels: impl IntoIterator<Item = &'l Label<'a>>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in labels {
        for text in [name, value] {
            out.extend_from_slice(text.as_bytes());
            out.push(0xff);
        }
    }
    out
}

/// Tells a converted histogram, which takes its lines' exemplars.
fn tell<E>(
    family: &Family<'_>,
    lines: &mut [Line<'_>],
    row: &HistogramRow,
    start_ms: Option<i64>,
    take: &mut dyn FnMut(&Sample<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut exemplars: Vec<Exemplar<'_>> = lines.iter_mut().filter_map(|line| line.exemplar.take()).collect();
    sort(&mut exemplars);
    let Some(first) = lines.first() else { return Ok(()) };
    let mut labels: Vec<Label<'_>> = Vec::with_capacity(first.labels.len());
    labels.push((Cow::Borrowed("__name__"), Cow::Borrowed(&family.name)));
    labels.extend(own(&first.labels).map(|(name, value)| (Cow::Borrowed(&**name), Cow::Borrowed(&**value))));
    let key = written(&labels);
    take(&Sample {
        key: &key,
        labels: &labels,
        point: Point::Histogram(row),
        ts_ms: first.ts_ms,
        start_ms: start_ms.filter(|ms| *ms != 0),
        exemplars: &exemplars,
        family: Some(family),
    })
}
