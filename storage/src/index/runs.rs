//! The run index of a part: which rows belong to which stream, series or trace, in file order.
//!
//! ```text
//! zstd of: kind u8 (1 streams, 2 series, 3 traces) | count u64 | entries        little-endian, lengths before texts
//!   stream  id i64 | labels | rows u64 | min_ts i64 | max_ts i64 | templates u32 | (template_id i64, rows u32)*
//!   series  id i64 | rows u64
//!   trace   id [16] | rows u64 | min_ts i64 | max_end i64 | errors u32 | root service | root name
//! ```
//! First rows are not stored: entries follow each other without gaps.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{Int32Type, Int64Type, TimestampNanosecondType},
};

use crate::{limits, model::Table};

/// Rows of one template within a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateRun {
    pub template_id: i64,
    pub rows: u32,
}

/// Rows of one log stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRun {
    pub stream_id: i64,
    /// Canonical JSON.
    pub labels: Arc<str>,
    pub first_row: u64,
    pub rows: u64,
    /// Nanoseconds, both inclusive.
    pub min_ts: i64,
    pub max_ts: i64,
    /// In row order.
    pub templates: Vec<TemplateRun>,
}

/// Points of one metric series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesRun {
    pub series_id: i64,
    pub first_row: u64,
    pub rows: u64,
}

/// Spans of one trace, as far as this part has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRun {
    pub trace_id: [u8; 16],
    pub first_row: u64,
    pub rows: u64,
    /// Start of the earliest span and end of the latest, nanoseconds.
    pub min_ts: i64,
    pub max_end: i64,
    /// Spans with status error.
    pub errors: u32,
    /// Of the span without a parent; empty if the part does not have it.
    pub root_service: Arc<str>,
    pub root_name: Arc<str>,
}

/// The run index of a part. Tables without one have `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runs {
    None,
    Streams(Arc<[StreamRun]>),
    Series(Arc<[SeriesRun]>),
    Traces(Arc<[TraceRun]>),
}

/// Collects the run index from rows in part order.
pub struct RunsBuilder {
    table: Table,
    row: u64,
    streams: Vec<StreamRun>,
    series: Vec<SeriesRun>,
    traces: Vec<TraceRun>,
    /// A trace id is not 16 bytes: the part gets no trace summary.
    odd_trace: bool,
}

/// Stored columns that [`RunsBuilder::push`] reads.
pub(crate) fn columns(table: Table) -> &'static [&'static str] {
    match table {
        Table::Logs => &["ts", "stream_labels", "stream_id", "template_id"],
        Table::Spans => &["trace_id", "parent_span_id", "ts", "duration_ns", "name", "service_name", "status_code"],
        _ => &["series_id"],
    }
}

fn ints<'a>(batch: &'a RecordBatch, name: &str) -> &'a [i64] {
    let column = batch.column_by_name(name).expect("column of the stored schema");
    match column.as_primitive_opt::<Int64Type>() {
        Some(a) => a.values(),
        None => column.as_primitive::<TimestampNanosecondType>().values(),
    }
}

fn text(column: &ArrayRef, row: usize) -> &str {
    let d = column.as_dictionary::<Int32Type>();
    if d.is_null(row) { "" } else { d.values().as_string::<i32>().value(d.keys().value(row) as usize) }
}

impl RunsBuilder {
    pub fn new(table: Table) -> Self {
        RunsBuilder { table, row: 0, streams: Vec::new(), series: Vec::new(), traces: Vec::new(), odd_trace: false }
    }

    /// `batch`: the next rows, with at least the columns of [`columns`].
    pub fn push(&mut self, batch: &RecordBatch) {
        match self.table {
            Table::Logs => self.push_logs(batch),
            Table::Spans => self.push_spans(batch),
            _ => self.push_points(batch),
        }
        self.row += batch.num_rows() as u64;
    }

    fn push_logs(&mut self, batch: &RecordBatch) {
        let (times, streams) = (ints(batch, "ts"), ints(batch, "stream_id"));
        let templates = ints(batch, "template_id");
        let labels = batch.column_by_name("stream_labels").expect("column of the stored schema");
        let mut at = 0;
        while at < streams.len() {
            let (stream, template) = (streams[at], templates[at]);
            let same = |i: &usize| streams[*i] == stream && templates[*i] == template;
            let n = (at..streams.len()).take_while(same).count();
            let run = &times[at..at + n];
            let min = run.iter().copied().min().unwrap_or_default();
            let max = run.iter().copied().max().unwrap_or_default();
            if self.streams.last().is_none_or(|s| s.stream_id != stream) {
                self.streams.push(StreamRun {
                    stream_id: stream,
                    labels: text(labels, at).into(),
                    first_row: self.row + at as u64,
                    rows: 0,
                    min_ts: min,
                    max_ts: max,
                    templates: Vec::new(),
                });
            }
            let s = self.streams.last_mut().expect("just pushed");
            s.rows += n as u64;
            s.min_ts = s.min_ts.min(min);
            s.max_ts = s.max_ts.max(max);
            match s.templates.last_mut() {
                Some(t) if t.template_id == template && t.rows < u32::MAX - n as u32 => t.rows += n as u32,
                _ => s.templates.push(TemplateRun { template_id: template, rows: n as u32 }),
            }
            at += n;
        }
    }

    fn push_points(&mut self, batch: &RecordBatch) {
        for (i, id) in ints(batch, "series_id").iter().enumerate() {
            match self.series.last_mut() {
                Some(s) if s.series_id == *id => s.rows += 1,
                _ => self.series.push(SeriesRun { series_id: *id, first_row: self.row + i as u64, rows: 1 }),
            }
        }
    }

    fn push_spans(&mut self, batch: &RecordBatch) {
        let column = |name: &str| batch.column_by_name(name).expect("column of the stored schema");
        let traces = column("trace_id").as_binary::<i32>();
        let parents = column("parent_span_id").as_binary::<i32>();
        let (times, durations) = (ints(batch, "ts"), ints(batch, "duration_ns"));
        let status = column("status_code").as_primitive::<Int32Type>();
        let (names, services) = (column("name"), column("service_name"));
        for i in 0..batch.num_rows() {
            let Ok(trace) = <[u8; 16]>::try_from(traces.value(i)) else {
                self.odd_trace = true;
                return;
            };
            let end = times[i].saturating_add(durations[i]);
            if self.traces.last().is_none_or(|t| t.trace_id != trace) {
                self.traces.push(TraceRun {
                    trace_id: trace,
                    first_row: self.row + i as u64,
                    rows: 0,
                    min_ts: times[i],
                    max_end: end,
                    errors: 0,
                    root_service: "".into(),
                    root_name: "".into(),
                });
            }
            let t = self.traces.last_mut().expect("just pushed");
            t.rows += 1;
            t.min_ts = t.min_ts.min(times[i]);
            t.max_end = t.max_end.max(end);
            t.errors = t.errors.saturating_add(u32::from(status.value(i) == 2));
            if t.root_name.is_empty() && (parents.is_null(i) || parents.value(i).is_empty()) {
                t.root_service = text(services, i).into();
                t.root_name = text(names, i).into();
            }
        }
    }

    pub fn finish(self) -> Runs {
        match self.table {
            Table::Logs => Runs::Streams(self.streams.into()),
            Table::Spans if self.odd_trace => Runs::None,
            Table::Spans => Runs::Traces(self.traces.into()),
            _ => Runs::Series(self.series.into()),
        }
    }
}

impl Runs {
    /// Rows that the index covers; a reader compares it with the file's.
    pub fn rows(&self) -> Option<u64> {
        match self {
            Runs::None => None,
            Runs::Streams(s) => Some(s.iter().map(|r| r.rows).sum()),
            Runs::Series(s) => Some(s.iter().map(|r| r.rows).sum()),
            Runs::Traces(t) => Some(t.iter().map(|r| r.rows).sum()),
        }
    }

    pub(crate) fn encode(&self) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::new();
        match self {
            Runs::None => out.push(0),
            Runs::Streams(all) => {
                begin(&mut out, 1, all.len());
                for s in all.iter() {
                    out.extend_from_slice(&s.stream_id.to_le_bytes());
                    put_text(&mut out, &s.labels);
                    out.extend_from_slice(&s.rows.to_le_bytes());
                    out.extend_from_slice(&s.min_ts.to_le_bytes());
                    out.extend_from_slice(&s.max_ts.to_le_bytes());
                    out.extend_from_slice(&(s.templates.len() as u32).to_le_bytes());
                    for t in &s.templates {
                        out.extend_from_slice(&t.template_id.to_le_bytes());
                        out.extend_from_slice(&t.rows.to_le_bytes());
                    }
                }
            }
            Runs::Series(all) => {
                begin(&mut out, 2, all.len());
                for s in all.iter() {
                    out.extend_from_slice(&s.series_id.to_le_bytes());
                    out.extend_from_slice(&s.rows.to_le_bytes());
                }
            }
            Runs::Traces(all) => {
                begin(&mut out, 3, all.len());
                for t in all.iter() {
                    out.extend_from_slice(&t.trace_id);
                    out.extend_from_slice(&t.rows.to_le_bytes());
                    out.extend_from_slice(&t.min_ts.to_le_bytes());
                    out.extend_from_slice(&t.max_end.to_le_bytes());
                    out.extend_from_slice(&t.errors.to_le_bytes());
                    put_text(&mut out, &t.root_service);
                    put_text(&mut out, &t.root_name);
                }
            }
        }
        zstd::bulk::compress(&out, 1)
    }

    /// `None`: not what [`Runs::encode`] made.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Runs> {
        use std::io::Read as _;
        let mut raw = Vec::new();
        let decoder = zstd::stream::Decoder::new(bytes).ok()?;
        decoder.take(limits::RUN_INDEX_BYTES_MAX as u64).read_to_end(&mut raw).ok()?;
        let mut input = Input(&raw);
        let kind = input.take::<1>()?[0];
        if kind == 0 {
            return Some(Runs::None);
        }
        let count = u64::from_le_bytes(input.take()?);
        let mut row = 0u64;
        let mut next = |rows: u64| {
            let first = row;
            row = row.checked_add(rows)?;
            Some(first)
        };
        let runs = match kind {
            1 => {
                let mut out = Vec::new();
                for _ in 0..count {
                    let stream_id = i64::from_le_bytes(input.take()?);
                    let labels = input.text()?;
                    let rows = u64::from_le_bytes(input.take()?);
                    let min_ts = i64::from_le_bytes(input.take()?);
                    let max_ts = i64::from_le_bytes(input.take()?);
                    let mut templates = Vec::new();
                    for _ in 0..u32::from_le_bytes(input.take()?) {
                        let template_id = i64::from_le_bytes(input.take()?);
                        templates.push(TemplateRun { template_id, rows: u32::from_le_bytes(input.take()?) });
                    }
                    let first_row = next(rows)?;
                    out.push(StreamRun { stream_id, labels, first_row, rows, min_ts, max_ts, templates });
                }
                Runs::Streams(out.into())
            }
            2 => {
                let mut out = Vec::new();
                for _ in 0..count {
                    let series_id = i64::from_le_bytes(input.take()?);
                    let rows = u64::from_le_bytes(input.take()?);
                    out.push(SeriesRun { series_id, first_row: next(rows)?, rows });
                }
                Runs::Series(out.into())
            }
            3 => {
                let mut out = Vec::new();
                for _ in 0..count {
                    let trace_id = input.take()?;
                    let rows = u64::from_le_bytes(input.take()?);
                    let min_ts = i64::from_le_bytes(input.take()?);
                    let max_end = i64::from_le_bytes(input.take()?);
                    let errors = u32::from_le_bytes(input.take()?);
                    let (root_service, root_name) = (input.text()?, input.text()?);
                    let first_row = next(rows)?;
                    out.push(TraceRun {
                        trace_id,
                        first_row,
                        rows,
                        min_ts,
                        max_end,
                        errors,
                        root_service,
                        root_name,
                    });
                }
                Runs::Traces(out.into())
            }
            _ => return None,
        };
        input.0.is_empty().then_some(runs)
    }
}

fn begin(out: &mut Vec<u8>, kind: u8, count: usize) {
    out.push(kind);
    out.extend_from_slice(&(count as u64).to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn text(&mut self) -> Option<Arc<str>> {
        let len = u32::from_le_bytes(self.take()?) as usize;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(std::str::from_utf8(head).ok()?.into())
    }
}
