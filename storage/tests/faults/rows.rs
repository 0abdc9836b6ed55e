//! Rows that can be told from their content: every column follows from the record's number and the row's place in it.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{AsArray as _, BooleanArray, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use storage::{
    DeleteRequest, RowFilter, ScanError, ScanRequest, Selector, Store,
    model::{
        Labels, LogBatchBuilder, LogRow, MatchOp, Matcher, MetricBatchBuilder, SpanBatchBuilder, SpanRow, Table,
        TenantId, TimeRange, batch::SeriesMeta,
    },
};

pub const HOUR_MS: i64 = 3_600_000;
pub const BASE_MS: i64 = 1_767_225_600_000;

/// The tables a record may write to.
pub const SIGNALS: [Table; 3] = [Table::Logs, Table::MetricSamples, Table::Spans];

/// Rows of one record fall into different hours, so that a flush makes several parts.
fn time_ms(record: u32, row: usize) -> i64 {
    BASE_MS + ((i64::from(record) / 3 + row as i64) % 2) * HOUR_MS + i64::from(record) * 50 + row as i64
}

fn stream(record: u32, row: usize) -> String {
    Labels::from_pairs([("app", format!("app{}", (record as usize + row) % 3).as_str())]).to_json()
}

fn series(record: u32, row: usize) -> Labels {
    Labels::from_pairs([("__name__", "m"), ("job", format!("job{}", (record as usize + row) % 3).as_str())])
}

pub fn build(signal: Table, record: u32, rows: usize) -> Vec<(Table, RecordBatch)> {
    match signal {
        Table::Logs => {
            let mut b = LogBatchBuilder::new();
            for i in 0..rows {
                let labels = stream(record, i);
                let body = format!("record {record} row {i} {}", "x".repeat((record as usize * 7 + i) % 40));
                let ts = time_ms(record, i) * 1_000_000;
                b.push(&LogRow { ts, stream_labels: &labels, body: &body, ..LogRow::default() });
            }
            vec![(Table::Logs, b.finish())]
        }
        Table::Spans => {
            let mut b = SpanBatchBuilder::new();
            for i in 0..rows {
                let name = format!("record {record} row {i}");
                b.push(&SpanRow {
                    trace_id: &(u128::from(record) + 1).to_be_bytes(),
                    span_id: &(i as u64 + 1).to_be_bytes(),
                    ts: time_ms(record, i) * 1_000_000,
                    duration_ns: 5,
                    name: &name,
                    ..SpanRow::default()
                });
            }
            vec![(Table::Spans, b.finish())]
        }
        _ => {
            let mut b = MetricBatchBuilder::new();
            for i in 0..rows {
                let id = b.series(&series(record, i), SeriesMeta::default());
                b.sample(id, time_ms(record, i), None, f64::from(record) * 1000.0 + i as f64);
            }
            let m = b.finish();
            vec![(Table::MetricSeries, m.series), (Table::MetricSamples, m.samples)]
        }
    }
}

/// Rows of one record, by what only they hold.
struct OfRecord(Table, u32);

impl RowFilter for OfRecord {
    fn columns(&self) -> &[&'static str] {
        if self.0 == Table::Logs { &["body"] } else { &["value"] }
    }
    fn keep(&self, batch: &RecordBatch) -> Result<BooleanArray, ScanError> {
        let column = batch.column_by_name(self.columns()[0]).expect("a column asked for");
        Ok(match self.0 {
            Table::Logs => column.as_string::<i32>().iter().map(|b| b.map(|b| numbers(b).0 == self.1)).collect(),
            _ => column.as_primitive::<Float64Type>().iter().map(|v| v.map(|v| v as u32 / 1000 == self.1)).collect(),
        })
    }
}

pub fn delete(tenant: &TenantId, signal: Table, record: u32) -> DeleteRequest {
    let by_filter = signal != Table::Spans;
    DeleteRequest {
        tenant: tenant.clone(),
        table: signal,
        selector: if by_filter { Selector::All } else { Selector::Trace((u128::from(record) + 1).to_be_bytes()) },
        range: TimeRange::ALL,
        filter: by_filter.then(|| Arc::new(OfRecord(signal, record)) as Arc<dyn RowFilter>),
    }
}

/// How often each row of each record was seen.
pub type Found = BTreeMap<u32, BTreeMap<usize, usize>>;

/// All rows of a signal, by a scan; `by_labels`: through the label index. Panics on a row nobody wrote.
pub async fn read(store: &Store, tenant: &TenantId, signal: Table, by_labels: bool) -> Result<Found, ScanError> {
    let mut request = ScanRequest::new(tenant.clone(), signal, TimeRange::ALL);
    request = match signal {
        Table::Logs => request.columns(&["ts", "stream_labels", "body"]),
        Table::Spans => request.columns(&["ts", "trace_id", "span_id", "name"]),
        _ => request.columns(&["series_id", "ts_ms", "value"]),
    };
    if by_labels && signal != Table::Spans {
        let name = if signal == Table::Logs { "app" } else { "job" };
        request = request.selector(Selector::Labels(vec![Matcher::new(name, MatchOp::Re, ".+").unwrap()]));
    }
    let stream = store.scan(request).await?;
    let stats = stream.stats().clone();
    let batches = stream.collect().await?;
    assert_eq!(stats.damaged.load(std::sync::atomic::Ordering::Relaxed), 0, "nothing is damaged on this disk");
    let mut found = Found::new();
    for b in &batches {
        for at in 0..b.num_rows() {
            let (record, row) = identify(signal, b, at);
            *found.entry(record).or_default().entry(row).or_default() += 1;
        }
    }
    Ok(found)
}

fn identify(signal: Table, b: &RecordBatch, at: usize) -> (u32, usize) {
    match signal {
        Table::Logs => {
            let body = b.column(2).as_string::<i32>().value(at);
            let (record, row) = numbers(body);
            let expected = build(signal, record, row + 1).remove(0).1;
            assert_eq!(body, expected.column_by_name("body").unwrap().as_string::<i32>().value(row));
            let labels = b.column(1).as_dictionary::<Int32Type>();
            let text = labels.values().as_string::<i32>().value(labels.keys().value(at) as usize);
            assert_eq!(text, stream(record, row));
            let ts = b.column(0).as_primitive::<TimestampNanosecondType>().value(at);
            assert_eq!(ts, time_ms(record, row) * 1_000_000);
            (record, row)
        }
        Table::Spans => {
            let names = b.column(3).as_dictionary::<Int32Type>();
            let name = names.values().as_string::<i32>().value(names.keys().value(at) as usize);
            let (record, row) = numbers(name);
            assert_eq!(b.column(1).as_binary::<i32>().value(at), (u128::from(record) + 1).to_be_bytes());
            assert_eq!(b.column(2).as_binary::<i32>().value(at), (row as u64 + 1).to_be_bytes());
            let ts = b.column(0).as_primitive::<TimestampNanosecondType>().value(at);
            assert_eq!(ts, time_ms(record, row) * 1_000_000);
            (record, row)
        }
        _ => {
            let value = b.column(2).as_primitive::<Float64Type>().value(at) as u64;
            let (record, row) = ((value / 1000) as u32, (value % 1000) as usize);
            let id = MetricBatchBuilder::new().series(&series(record, row), SeriesMeta::default());
            assert_eq!(b.column(0).as_primitive::<Int64Type>().value(at), id);
            assert_eq!(b.column(1).as_primitive::<Int64Type>().value(at), time_ms(record, row));
            (record, row)
        }
    }
}

/// Of `record N row M ...`.
fn numbers(text: &str) -> (u32, usize) {
    let mut words = text.split(' ');
    let record = words.nth(1).and_then(|w| w.parse().ok());
    let row = words.nth(1).and_then(|w| w.parse().ok());
    (record.expect("a row nobody wrote"), row.expect("a row nobody wrote"))
}
