//! What is kept of one tenant: selectors with their series, series with their samples, and up to where all of it is good.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Float64Type, Int64Type},
};
use storage::{
    Mark, ScanError, Tail,
    model::{Labels, MatchOp, Matcher, Table},
};

use super::{Miss, Wanted};
use crate::fetch::{SeriesData, column};

/// Samples are kept for so much longer than any selector needs them: groups are not all at the same time. Milliseconds.
pub(super) const SLACK_MS: i64 = 60_000;
/// After memory was too small no selector is added for so long, ms of evaluation time.
const FULL_MS: i64 = 600_000;

/// Ids are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = self.0.rotate_left(8) ^ u64::from(*b));
    }

    fn write_i64(&mut self, id: i64) {
        self.0 = id as u64;
    }
}

type ById<T> = HashMap<i64, T, BuildHasherDefault<Identity>>;

/// Id and labels of a series.
pub(super) type Found = (i64, Arc<Labels>);

struct Selection {
    matchers: Vec<Matcher>,
    /// Sorted by labels.
    series: Vec<Found>,
    /// How far it looks back from an evaluation, ms.
    span_ms: i64,
    /// The evaluation that asked last.
    used_ms: i64,
}

struct Held {
    data: Arc<SeriesData>,
    /// Every sample from here on is there.
    from_ms: i64,
    /// The longest of its selections.
    span_ms: i64,
    histograms: bool,
}

#[derive(Default)]
pub(super) struct Memory {
    /// Up to where the tables were taken over.
    pub samples: Mark,
    pub histograms: Mark,
    pub series: Mark,
    /// Taking over was not finished: nothing here counts.
    pub damaged: bool,
    /// The latest evaluation, and that at which everything was read.
    pub at_ms: i64,
    pub read_ms: i64,
    pub swept_ms: i64,
    full_until_ms: i64,
    selections: HashMap<String, Selection>,
    /// Keys of selections by the metric name they ask for.
    by_name: HashMap<String, Vec<String>>,
    /// Those of selections that do not name one.
    unnamed: Vec<String>,
    held: ById<Held>,
    rows: usize,
    /// Samples and series that the figures have of this.
    pub told: (u64, u64),
    /// How much of each there may be.
    pub samples_max: usize,
    pub series_max: usize,
}

fn key(matchers: &[Matcher]) -> String {
    let mut out = String::with_capacity(64);
    for m in matchers {
        // Lengths, so that no two lists of matchers look alike.
        out.push_str(&format!("{}:{}{:?}{}:{}", m.name().len(), m.name(), m.op(), m.value().len(), m.value()));
    }
    out
}

fn name_of(matchers: &[Matcher]) -> Option<&str> {
    matchers.iter().find(|m| m.name() == "__name__" && m.op() == MatchOp::Eq).map(Matcher::value)
}

impl Memory {
    pub fn selectors(&self) -> usize {
        self.selections.len()
    }

    pub fn series(&self) -> usize {
        self.held.len()
    }

    pub fn samples(&self) -> usize {
        self.rows
    }

    pub fn keeps(&self, wanted: &Wanted) -> bool {
        self.selections.contains_key(&key(&wanted.matchers))
    }

    pub fn is_full(&self) -> bool {
        self.at_ms < self.full_until_ms
    }

    /// How many series [`Memory::find`] would look at.
    pub fn series_of(&self, wanted: &Wanted) -> usize {
        self.selections.get(&key(&wanted.matchers)).map_or(0, |s| s.series.len())
    }

    /// What a scan would give, see [`super::Recent::find`].
    pub fn find(&mut self, wanted: &Wanted, series_max: usize) -> Result<Vec<Arc<SeriesData>>, Miss> {
        self.at_ms = self.at_ms.max(wanted.at_ms);
        let selection = self.selections.get_mut(&key(&wanted.matchers)).ok_or(Miss::Unknown)?;
        selection.used_ms = selection.used_ms.max(wanted.at_ms);
        if selection.series.len() > series_max {
            return Err(Miss::Unfit);
        }
        let mut out = Vec::with_capacity(selection.series.len());
        for (id, _) in &selection.series {
            let held = self.held.get(id).ok_or(Miss::Unknown)?;
            if held.histograms {
                return Err(Miss::Unfit);
            }
            if held.from_ms > wanted.from_ms {
                return Err(Miss::Unknown);
            }
            out.extend(cut(&held.data, wanted.from_ms, wanted.to_ms));
        }
        Ok(out)
    }

    /// Notes a selector and its series, sorted by labels. Which of them have yet to be read.
    pub fn select(&mut self, wanted: &Wanted, span_ms: i64, series: Vec<Found>) -> Vec<i64> {
        let mut unread = Vec::new();
        for (id, labels) in &series {
            let held = self.held.entry(*id).or_insert_with(|| Held {
                data: Arc::new(SeriesData::new(labels.clone())),
                from_ms: i64::MAX,
                span_ms,
                histograms: false,
            });
            held.span_ms = held.span_ms.max(span_ms);
            if held.from_ms > wanted.from_ms {
                unread.push(*id);
            }
        }
        let key = key(&wanted.matchers);
        let before = self.selections.remove(&key);
        if before.is_none() {
            match name_of(&wanted.matchers) {
                Some(name) => self.by_name.entry(name.to_owned()).or_default().push(key.clone()),
                None => self.unnamed.push(key.clone()),
            }
        }
        let span_ms = before.map_or(span_ms, |b| b.span_ms.max(span_ms));
        let matchers = wanted.matchers.clone();
        self.selections.insert(key, Selection { matchers, series, span_ms, used_ms: wanted.at_ms });
        unread
    }

    /// Forgets everything; what was wanted, for the latest evaluation.
    pub fn clear(&mut self) -> Vec<Wanted> {
        let at_ms = self.at_ms;
        let wanted = std::mem::take(&mut self.selections).into_values();
        let out = wanted
            .map(|s| Wanted { matchers: s.matchers, from_ms: at_ms - s.span_ms, to_ms: at_ms, at_ms })
            .collect();
        self.by_name.clear();
        self.unnamed.clear();
        self.held.clear();
        self.rows = 0;
        out
    }

    /// Of all series, which are given back.
    pub fn forget_samples(&mut self) -> HashSet<i64> {
        for held in self.held.values_mut() {
            held.from_ms = i64::MAX;
            held.data = Arc::new(SeriesData::new(held.data.labels.clone()));
        }
        self.rows = 0;
        self.held.keys().copied().collect()
    }

    /// Those of the series that are kept for longer than `low` and not longer than `high`, and how long at the most, ms.
    pub fn of_span(&self, ids: &HashSet<i64>, low: i64, high: i64) -> (Vec<i64>, i64) {
        let mut most = 0;
        let of = ids.iter().filter(|id| {
            let Some(held) = self.held.get(id).filter(|h| low < h.span_ms && h.span_ms <= high) else { return false };
            most = most.max(held.span_ms);
            true
        });
        let of: Vec<i64> = of.copied().collect();
        (of, most)
    }

    /// Samples kept of all other series.
    pub fn samples_without(&self, ids: &[i64]) -> usize {
        let of: usize = ids.iter().filter_map(|id| self.held.get(id)).map(|h| h.data.ts.len()).sum();
        self.rows - of
    }

    /// There is no room for these, so none for what asks for them.
    pub fn drop_series(&mut self, ids: &[i64]) {
        tracing::warn!(
            series = self.held.len(),
            "recent samples of all rules do not fit into memory; some rules read the store each time"
        );
        self.full_until_ms = self.at_ms + FULL_MS;
        let gone: HashSet<&i64> = ids.iter().collect();
        self.selections.retain(|_, s| !s.series.iter().any(|(id, _)| gone.contains(id)));
        self.tidy();
    }

    /// Forgets selectors that were not asked for in `unused_ms`, and samples that are too old.
    pub fn sweep(&mut self, unused_ms: i64) {
        self.swept_ms = self.at_ms;
        let before = self.at_ms - unused_ms;
        self.selections.retain(|_, s| s.used_ms >= before);
        self.tidy();
        let (mut rows, at_ms) = (0, self.at_ms);
        for held in self.held.values_mut() {
            held.forget(at_ms);
            rows += held.data.ts.len();
        }
        self.rows = rows;
    }

    /// Brings names and series in line with the selections.
    fn tidy(&mut self) {
        let selections = &self.selections;
        self.by_name.values_mut().for_each(|keys| keys.retain(|k| selections.contains_key(k)));
        self.by_name.retain(|_, keys| !keys.is_empty());
        self.unnamed.retain(|k| selections.contains_key(k));
        let mut spans: ById<i64> = ById::default();
        for s in selections.values() {
            for (id, _) in &s.series {
                let span = spans.entry(*id).or_default();
                *span = s.span_ms.max(*span);
            }
        }
        self.held.retain(|id, held| match spans.get(id) {
            Some(span) => {
                held.span_ms = *span;
                true
            }
            None => false,
        });
        self.rows = self.held.values().map(|h| h.data.ts.len()).sum();
    }

    /// Empties these series: their samples from `from_ms` on follow.
    pub fn begin(&mut self, ids: &[i64], from_ms: i64) {
        for id in ids {
            if let Some(held) = self.held.get_mut(id) {
                self.rows -= held.data.ts.len();
                held.data = Arc::new(SeriesData::new(held.data.labels.clone()));
                held.from_ms = from_ms;
            }
        }
    }

    pub fn absorb(&mut self, tail: &Tail) -> Result<(), ScanError> {
        for batch in tail.load()? {
            match tail.table() {
                Table::MetricSeries => self.take_series(&batch)?,
                Table::MetricHistograms => self.take_histograms(std::slice::from_ref(&batch))?,
                _ => self.take_samples(&batch)?,
            }
        }
        match tail.table() {
            Table::MetricSeries => self.series = tail.mark(),
            Table::MetricHistograms => self.histograms = tail.mark(),
            _ => self.samples = tail.mark(),
        }
        if self.rows > self.samples_max {
            let all: Vec<i64> = self.held.keys().copied().collect();
            self.drop_series(&all);
        }
        Ok(())
    }

    /// Enters new series into the selections they are of. They have no samples before.
    fn take_series(&mut self, batch: &RecordBatch) -> Result<(), ScanError> {
        let ids = column(batch, "series_id").map_err(|e| ScanError::Internal(e.to_string()))?;
        let texts = column(batch, "labels").map_err(|e| ScanError::Internal(e.to_string()))?;
        let (ids, texts) = (ids.as_primitive::<Int64Type>(), texts.as_string::<i32>());
        for (id, text) in ids.values().iter().zip(texts) {
            let Some(Ok(labels)) = text.map(Labels::from_json) else { continue };
            let named = labels.get("__name__").and_then(|name| self.by_name.get(name));
            let keys = named.into_iter().flatten().chain(&self.unnamed);
            let mut span_ms = None;
            let mut shared: Option<Arc<Labels>> = None;
            for key in keys {
                let Some(selection) = self.selections.get_mut(key) else { continue };
                if !selection.matchers.iter().all(|m| m.matches(&labels)) {
                    continue;
                }
                span_ms = span_ms.max(Some(selection.span_ms));
                if let Err(at) = selection.series.binary_search_by(|(_, l)| (**l).cmp(&labels)) {
                    let labels = shared.get_or_insert_with(|| Arc::new(labels.clone()));
                    selection.series.insert(at, (*id, labels.clone()));
                }
            }
            if let Some(span_ms) = span_ms {
                let new = || Held {
                    data: Arc::new(SeriesData::new(shared.unwrap_or_else(|| Arc::new(labels)))),
                    from_ms: i64::MIN,
                    span_ms,
                    histograms: false,
                };
                let held = self.held.entry(*id).or_insert_with(new);
                held.span_ms = held.span_ms.max(span_ms);
            }
        }
        Ok(())
    }

    pub fn take_histograms(&mut self, batches: &[RecordBatch]) -> Result<(), ScanError> {
        for batch in batches {
            let ids = column(batch, "series_id").map_err(|e| ScanError::Internal(e.to_string()))?;
            for id in ids.as_primitive::<Int64Type>().values() {
                if let Some(held) = self.held.get_mut(id) {
                    held.histograms = true;
                }
            }
        }
        Ok(())
    }

    /// Lays samples over what is there, in commit order.
    pub fn take_samples(&mut self, batch: &RecordBatch) -> Result<(), ScanError> {
        let get = |name| column(batch, name).map_err(|e| ScanError::Internal(e.to_string()));
        let (ids, ts, values) = (get("series_id")?, get("ts_ms")?, get("value")?);
        let ids = ids.as_primitive::<Int64Type>().values();
        let ts = ts.as_primitive::<Int64Type>().values();
        let values = values.as_primitive::<Float64Type>().values();
        let mut at = 0;
        for run in ids.chunk_by(|a, b| a == b) {
            let rows = at..at + run.len();
            at = rows.end;
            let Some(held) = self.held.get_mut(&run[0]) else { continue };
            let before = held.data.ts.len();
            for i in rows {
                if ts[i] >= held.from_ms {
                    held.put(ts[i], values[i], self.at_ms);
                }
            }
            self.rows = self.rows + held.data.ts.len() - before;
        }
        Ok(())
    }
}

impl Held {
    fn put(&mut self, ts: i64, value: f64, at_ms: i64) {
        if self.data.ts.len() == self.data.ts.capacity() && self.data.ts.len() >= 4 {
            let floor = at_ms.saturating_sub(self.span_ms).saturating_sub(SLACK_MS);
            let old = self.data.ts.partition_point(|t| *t <= floor);
            if old >= self.data.ts.len() / 4 {
                self.forget(at_ms);
            }
        }
        let data = Arc::make_mut(&mut self.data);
        if data.ts.last().is_none_or(|last| *last < ts) {
            data.ts.push(ts);
            data.values.push(value);
            return;
        }
        // Of samples with one time the last that came counts.
        match data.ts.binary_search(&ts) {
            Ok(i) => data.values[i] = value,
            Err(i) => {
                data.ts.insert(i, ts);
                data.values.insert(i, value);
            }
        }
    }

    fn forget(&mut self, at_ms: i64) {
        let floor = at_ms.saturating_sub(self.span_ms).saturating_sub(SLACK_MS);
        if self.data.ts.first().is_some_and(|t| *t <= floor) {
            Arc::make_mut(&mut self.data).forget(floor);
            self.from_ms = self.from_ms.max(floor + 1);
        }
    }
}

/// The samples in the closed interval; `None`: there is none.
fn cut(data: &Arc<SeriesData>, from_ms: i64, to_ms: i64) -> Option<Arc<SeriesData>> {
    let ts = &data.ts;
    let (start, end) = (ts.partition_point(|t| *t < from_ms), ts.partition_point(|t| *t <= to_ms));
    if start >= end {
        return None;
    }
    if start == 0 && end == ts.len() {
        return Some(data.clone());
    }
    let (ts, values) = (ts[start..end].to_vec(), data.values[start..end].to_vec());
    Some(Arc::new(SeriesData { ts, values, ..SeriesData::new(data.labels.clone()) }))
}
