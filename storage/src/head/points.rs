//! Series of metric points: which (series, day) pairs a batch touches, and which of them are new.
//!
//! A series has one row in `metric_series` for each day it has a point on; the WAL carries a row only when it is new, or
//! when it tells a type, unit or help that was not known (remote write 1.0 sends those after the first samples).

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array},
    datatypes::{Int32Type, Int64Type},
};

use super::{
    pairs::Slot,
    repeats::{Newest, marks},
    rows::{StoredRows, StreamSpan},
    series::{LabelIndex, PAGE, SeriesText},
};
use crate::{
    AppendError,
    model::{
        Labels, Table,
        labels::id_of_json,
        schema,
        time::{MILLIS_PER_DAY, NANOS_PER_DAY, NANOS_PER_MILLI},
    },
    part::MixedMap,
};

/// Points of one series on one day that follow each other in a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub id: i64,
    pub day: i64,
    /// Time of the earliest and the latest, nanoseconds.
    pub min: i64,
    pub max: i64,
    /// What tells the latest from others at its time; see [`marks`].
    mark: u64,
    /// Of a series that the index knows on that day.
    slot: Option<Slot>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No points of a series but what hangs on them.
    Exemplars,
    Points,
    /// Of which two that were the latest at one time differ.
    Contradicting,
}

impl Span {
    /// A point behind the others.
    #[inline]
    fn add(&mut self, at: i64, mark: u64) {
        if at == self.max && mark != self.mark {
            self.kind = Kind::Contradicting;
        }
        if at >= self.max {
            (self.max, self.mark) = (at, mark);
        }
        self.min = self.min.min(at);
    }

    #[inline]
    fn note(&self, index: &mut LabelIndex, slot: Option<Slot>) {
        if let (Some(slot), true) = (slot, self.kind != Kind::Exemplars) {
            index.note(slot, Newest { at: self.max, mark: self.mark });
        }
    }
}

/// The spans of an append.
#[derive(Debug, Default)]
pub(crate) struct Spans {
    all: Vec<Span>,
    /// Numbering of the index that the slots are of.
    numbering: u64,
}

impl Spans {
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn days(&self) -> HashSet<i64> {
        let mut days: Vec<i64> = self.all.iter().map(|s| s.day).collect();
        days.dedup();
        days.into_iter().collect()
    }

    /// Adds those of a batch of points; other tables are left alone.
    pub fn add(&mut self, table: Table, batch: &RecordBatch) -> Result<(), AppendError> {
        if !matches!(table, Table::MetricSamples | Table::MetricHistograms | Table::MetricExemplars) {
            return Ok(());
        }
        super::rows::check_schema(table, batch)?;
        let ids = batch.column(0).as_primitive::<Int64Type>().values();
        let times = batch.column(1).as_primitive::<Int64Type>().values();
        let marks = marks(table, batch);
        let kind = if marks.is_some() { Kind::Points } else { Kind::Exemplars };
        let marks = marks.as_deref().unwrap_or_default();
        let from = self.all.len();
        self.all.reserve(ids.len());
        // Points of a batch are mostly of one day.
        let (mut day, mut first, mut last) = (0, 1, 0);
        for (i, (id, ms)) in ids.iter().zip(times).enumerate() {
            if *ms < first || *ms > last {
                day = ms.div_euclid(MILLIS_PER_DAY);
                first = day.saturating_mul(MILLIS_PER_DAY);
                last = first.saturating_add(MILLIS_PER_DAY - 1);
            }
            let ns = ms.saturating_mul(NANOS_PER_MILLI);
            let mark = marks.get(i).copied().unwrap_or_default();
            match self.all[from..].last_mut() {
                Some(s) if s.id == *id && s.day == day => s.add(ns, mark),
                _ => self.all.push(Span { id: *id, day, min: ns, max: ns, mark, slot: None, kind }),
            }
        }
        Ok(())
    }

    /// Looks up where the index has the series.
    pub fn locate(&mut self, index: &LabelIndex) {
        self.numbering = index.numbering;
        let mut known = index.cursor();
        for span in &mut self.all {
            span.slot = known.entry(span.day, span.id).map(|k| k.slot);
        }
    }

    /// Whether a point may contradict the newest one of its series in the index, or another of these; never `false` when
    /// one does, and `true` for little else.
    pub fn may_contradict(&self, index: &LabelIndex) -> bool {
        let points = || self.all.iter().filter(|s| s.kind != Kind::Exemplars);
        let mut last = None;
        let mut each_once = true;
        for span in points() {
            if span.kind == Kind::Contradicting {
                return true;
            }
            each_once &= span.slot.is_some() && span.slot > last;
            last = span.slot;
            let Some(known) = span.slot.map(|slot| index.newest_of(slot)) else { continue };
            let same = span.min == span.max && span.mark == known.mark;
            if (span.min..=span.max).contains(&known.at) && !same {
                return true;
            }
        }
        if each_once {
            return false;
        }
        let mut met: MixedMap<i64, ()> = MixedMap::default();
        met.reserve(self.all.len());
        if points().all(|s| met.insert(s.id, ()).is_none()) {
            return false;
        }
        let mut times: Vec<(i64, i64, i64)> = points().map(|s| (s.id, s.min, s.max)).collect();
        times.sort_unstable();
        times.windows(2).any(|w| w[0].0 == w[1].0 && w[0].2 >= w[1].1)
    }

    /// Widens the lives of the series, which the index knows by now, and notes their newest points.
    pub fn enter(&self, index: &mut LabelIndex) {
        let same = self.numbering == index.numbering;
        let page = |s: &Span| s.slot.filter(|_| same).map(|slot| slot / PAGE as u32);
        for spans in self.all.chunk_by(|a, b| a.day == b.day && page(a) == page(b)) {
            match page(&spans[0]) {
                Some(page) => {
                    let lives = spans.iter().filter_map(|s| Some((s.slot?, s.min, s.max)));
                    index.touch_page(spans[0].day, page, lives);
                    spans.iter().for_each(|s| s.note(index, s.slot));
                }
                None => spans.iter().for_each(|s| {
                    let slot = index.touch(s.day, s.id, s.min, s.max);
                    s.note(index, slot);
                }),
            }
        }
    }
}

/// The rows of `series` that the index lacks, one for each new (series, day), with that day's first and last time.
/// [`AppendError::UnknownSeries`] when points have no row there and the index does not know their series on their day.
pub(crate) fn new_series(
    index: &LabelIndex,
    series: &[&RecordBatch],
    spans: &mut Spans,
) -> Result<Vec<RecordBatch>, AppendError> {
    let mut row_of: MixedMap<i64, (u32, u32)> = MixedMap::default();
    for (b, batch) in series.iter().enumerate() {
        let ids = batch.column(0).as_primitive::<Int64Type>().values();
        row_of.extend(ids.iter().enumerate().map(|(i, id)| (*id, (b as u32, i as u32))));
    }
    let told: Vec<_> = series.iter().map(|b| ["type", "unit", "help"].map(|name| b.column_by_name(name))).collect();
    // Of what is new; few, and each once, however its points are spread over the batch.
    let mut rows: BTreeMap<(u32, u32, i64), (i64, i64)> = BTreeMap::new();
    spans.numbering = index.numbering;
    let mut known = index.cursor();
    for span in &mut spans.all {
        let known = known.entry(span.day, span.id);
        span.slot = known.map(|k| k.slot);
        let Some((b, row)) = row_of.get(&span.id).copied() else {
            if known.is_none() {
                return Err(AppendError::UnknownSeries { id: span.id });
            }
            continue;
        };
        let batch = series[b as usize];
        match known {
            Some(known) if !tells_more(&told[b as usize], row as usize, known.text) => continue,
            Some(_) => {}
            None => check_labels(index, batch, row as usize, span.id)?,
        }
        let life = rows.entry((b, row, span.day)).or_insert((span.min, span.max));
        *life = (life.0.min(span.min), life.1.max(span.max));
    }
    let mut out = Vec::new();
    for (b, batch) in series.iter().enumerate() {
        let of = || rows.range((b as u32, 0, i64::MIN)..=(b as u32, u32::MAX, i64::MAX));
        if of().next().is_none() {
            continue;
        }
        let taken: UInt32Array = of().map(|((_, row, _), _)| *row).collect();
        let taken =
            arrow::compute::take_record_batch(batch, &taken).map_err(|e| AppendError::Invalid(e.to_string()))?;
        let mut columns: Vec<ArrayRef> = taken.columns().to_vec();
        let at = columns.len() - 2;
        let millis = |ns: &i64| ns.div_euclid(NANOS_PER_MILLI);
        columns[at] = Arc::new(of().map(|(_, (min, _))| millis(min)).collect::<Int64Array>());
        columns[at + 1] = Arc::new(of().map(|(_, (_, max))| millis(max)).collect::<Int64Array>());
        let new = RecordBatch::try_new(schema::input(Table::MetricSeries), columns);
        out.push(new.map_err(|e| AppendError::Invalid(e.to_string()))?);
    }
    Ok(out)
}

/// Whether a row has a type, unit or help that is not known, and lacks none that is: two senders that disagree must not
/// write it again and again.
fn tells_more(told: &[Option<&ArrayRef>; 3], row: usize, known: Option<&SeriesText>) -> bool {
    let known = known.map_or([false; 3], |t| [t.metric_type.is_some(), t.unit.is_some(), t.help.is_some()]);
    let new = told.map(|column| column.is_some_and(|c| c.is_valid(row)));
    new != known && known.iter().zip(new).all(|(k, n)| n || !k)
}

/// The labels of a series that is new on its day must be those of its id.
fn check_labels(index: &LabelIndex, batch: &RecordBatch, row: usize, id: i64) -> Result<(), AppendError> {
    let text = batch.column(1).as_string::<i32>().value(row);
    if id_of_json(text) != id {
        return Err(AppendError::Invalid(format!("series id {id} is not the hash of its labels {text}")));
    }
    match index.labels(id) {
        Some(known) if known.to_json() != text => {
            Err(AppendError::Invalid(format!("labels {text} collide with {known} in their 64-bit id")))
        }
        _ => Ok(()),
    }
}

/// Enters streams or series of stored rows into the index of their table.
pub(crate) fn index_rows(index: &mut LabelIndex, rows: &StoredRows) {
    match rows.table {
        Table::Logs => {
            index_streams(index, &rows.streams);
        }
        Table::MetricSeries => index_series(index, &rows.batch, false),
        _ => {}
    }
}

/// Enters the streams of a logs batch.
pub(crate) fn index_streams(index: &mut LabelIndex, streams: &[StreamSpan]) {
    for s in streams {
        for (min, max) in &s.lives {
            index.add(min.div_euclid(NANOS_PER_DAY), s.id, || Some(s.labels.clone()), *min, *max, None);
        }
    }
}

/// Enters series rows. `whole_day`: their times are not final (they were written when the series was new, and points may
/// have come before and behind them), so they are taken to live all day.
pub(crate) fn index_series(index: &mut LabelIndex, batch: &RecordBatch, whole_day: bool) {
    let column = |name: &str| batch.column_by_name(name);
    let (Some(ids), Some(texts), Some(first), Some(last)) =
        (column("series_id"), column("labels"), column("first_ms"), column("last_ms"))
    else {
        return;
    };
    let (ids, texts) = (ids.as_primitive::<Int64Type>(), texts.as_string::<i32>());
    let (first, last) = (first.as_primitive::<Int64Type>(), last.as_primitive::<Int64Type>());
    let text = |name: &str, i: usize| -> Option<Arc<str>> {
        let d = column(name)?.as_dictionary::<Int32Type>();
        d.is_valid(i).then(|| Arc::from(d.values().as_string::<i32>().value(d.keys().value(i) as usize)))
    };
    for i in 0..batch.num_rows() {
        let day = first.value(i).div_euclid(MILLIS_PER_DAY);
        let (first, last) = if whole_day {
            (day.saturating_mul(MILLIS_PER_DAY), (day + 1).saturating_mul(MILLIS_PER_DAY) - 1)
        } else {
            (first.value(i), last.value(i))
        };
        let meta = SeriesText { metric_type: text("type", i), unit: text("unit", i), help: text("help", i) };
        index.add(
            day,
            ids.value(i),
            || Labels::from_json(texts.value(i)).ok().map(Arc::new),
            first.saturating_mul(NANOS_PER_MILLI),
            last.saturating_mul(NANOS_PER_MILLI),
            Some(meta),
        );
    }
}
