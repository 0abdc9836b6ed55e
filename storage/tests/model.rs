//! The store against a plain vector: random appends, flushes, merges, closes and crashes; every scan must give the same rows.

use std::sync::Arc;

use arrow::{
    array::{AsArray as _, RecordBatch},
    datatypes::{Float64Type, Int32Type, Int64Type, TimestampNanosecondType},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use storage::{
    Append, DeleteRequest, Durability, Receipt, RowFilter, ScanOrder, ScanRequest, Selector, SourcePosition, Store,
    StoreConfig,
    model::{
        Labels, LogBatchBuilder, LogRow, Matcher, MetricBatchBuilder, SpanBatchBuilder, SpanRow, Table, TenantId,
        TimeRange, Timestamp, batch::SeriesMeta,
    },
};

const HOUR: i64 = 3_600_000_000_000;
const BASE: i64 = 1_767_225_600_000_000_000;

fn config(dir: &std::path::Path) -> StoreConfig {
    let mut c = StoreConfig::new(dir);
    c.background = false;
    c.durability = Durability::None;
    c
}

fn seeds(default: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("SIGHTLINE_SEED") {
        return vec![seed.parse().expect("SIGHTLINE_SEED is a number")];
    }
    let n = std::env::var("SIGHTLINE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    (0..n).collect()
}

#[derive(Clone, Debug, PartialEq, PartialOrd)]
struct Row {
    ts: i64,
    app: String,
    body: String,
}

fn rows_of(batches: &[RecordBatch]) -> Vec<Row> {
    let mut out = Vec::new();
    for b in batches {
        let ts = b.column_by_name("ts").unwrap().as_primitive::<TimestampNanosecondType>();
        let labels = b.column_by_name("stream_labels").unwrap().as_dictionary::<Int32Type>();
        let texts = labels.values().as_string::<i32>();
        let body = b.column_by_name("body").unwrap().as_string::<i32>();
        for i in 0..b.num_rows() {
            let labels = Labels::from_json(texts.value(labels.keys().value(i) as usize)).unwrap();
            out.push(Row {
                ts: ts.value(i),
                app: labels.get("app").unwrap_or("").to_owned(),
                body: body.value(i).to_owned(),
            });
        }
    }
    out
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a.partial_cmp(b).unwrap());
    rows
}

async fn append_logs(store: &Store, tenant: &TenantId, rows: &[Row]) {
    let mut b = LogBatchBuilder::new();
    for r in rows {
        let labels = Labels::from_pairs([("app", r.app.as_str())]).to_json();
        b.push(&LogRow { ts: r.ts, stream_labels: &labels, body: &r.body, ..LogRow::default() });
    }
    let rows = vec![(Table::Logs, b.finish())];
    store.append(Append { tenant: tenant.clone(), rows, sources: vec![], batch_id: None }).await.unwrap();
}

struct Contains(&'static str);

impl RowFilter for Contains {
    fn columns(&self) -> &[&'static str] {
        &["body"]
    }
    fn keep(&self, batch: &RecordBatch) -> Result<arrow::array::BooleanArray, storage::ScanError> {
        let body = batch.column_by_name("body").unwrap().as_string::<i32>();
        Ok(body.iter().map(|b| b.map(|b| b.contains(self.0))).collect())
    }
}

/// One comparison of a random scan with the same over the vector.
async fn compare(store: &Store, tenant: &TenantId, model: &[Row], rng: &mut StdRng, what: &str) {
    let start = BASE + rng.random_range(-HOUR..4 * HOUR);
    let end = start + rng.random_range(1..3 * HOUR);
    let range =
        if rng.random_bool(0.3) { TimeRange::ALL } else { TimeRange::new(Timestamp(start), Timestamp(end)).unwrap() };
    let app = rng.random_bool(0.5).then(|| format!("app{}", rng.random_range(0..5)));
    let filter = rng.random_bool(0.4);
    let mut want: Vec<Row> = model
        .iter()
        .filter(|r| range.contains(Timestamp(r.ts)))
        .filter(|r| app.as_ref().is_none_or(|a| *a == r.app))
        .filter(|r| !filter || r.body.contains("7"))
        .cloned()
        .collect();
    let mut request = ScanRequest::new(tenant.clone(), Table::Logs, range).columns(&["body", "ts", "stream_labels"]);
    if let Some(a) = &app {
        request = request.selector(Selector::Labels(vec![Matcher::equal("app", a.as_str())]));
    }
    if filter {
        request = request.filter(Arc::new(Contains("7")));
    }
    let got = rows_of(&store.scan(request.clone()).await.unwrap().collect().await.unwrap());
    want = sorted(want);
    assert_eq!(sorted(got), want, "{what}: unordered scan of {range:?} {app:?} {filter}");
    // Times are distinct in this model, so an order fixes the rows.
    let limit = rng.random_range(1..50usize);
    for (order, descending) in [(ScanOrder::TimeAscending, false), (ScanOrder::TimeDescending, true)] {
        let got =
            rows_of(&store.scan(request.clone().order(order, Some(limit))).await.unwrap().collect().await.unwrap());
        let mut top = want.clone();
        if descending {
            top.reverse();
        }
        top.truncate(limit);
        assert_eq!(got, top, "{what}: {order:?} limit {limit}");
    }
}

#[tokio::test]
async fn any_mix_of_head_and_parts_scans_like_a_vector() {
    for seed in seeds(12) {
        let mut rng = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let tenant = TenantId::default_tenant();
        let mut store = Store::open(config(dir.path())).await.unwrap();
        let mut model: Vec<Row> = Vec::new();
        let mut next = 0i64;
        for step in 0..30 {
            let what = format!("seed {seed} step {step}");
            match rng.random_range(0..10) {
                0..=5 => {
                    let n = rng.random_range(1..400);
                    let rows: Vec<Row> = (0..n)
                        .map(|_| {
                            next += 1;
                            Row {
                                ts: BASE + rng.random_range(0..3 * HOUR) / 10_000 * 10_000 + next % 10_000,
                                app: format!("app{}", rng.random_range(0..4)),
                                body: format!("request {} took {} ms", next, rng.random_range(0..1000)),
                            }
                        })
                        .collect();
                    append_logs(&store, &tenant, &rows).await;
                    model.extend(rows);
                }
                6 => store.flush().await.unwrap(),
                7 => store.compact().await.unwrap(),
                8 => {
                    store.close().await.unwrap();
                    store = Store::open(config(dir.path())).await.unwrap();
                }
                _ => {
                    store.abandon().await.unwrap();
                    store = Store::open(config(dir.path())).await.unwrap();
                }
            }
            compare(&store, &tenant, &model, &mut rng, &what).await;
        }
        store.flush().await.unwrap();
        store.compact().await.unwrap();
        compare(&store, &tenant, &model, &mut rng, &format!("seed {seed} end")).await;
        assert!(store.parts_by_level().keys().any(|l| *l == 2), "seed {seed}: {:?}", store.parts_by_level());
    }
}

#[tokio::test]
async fn the_later_of_two_samples_at_one_time_counts_in_head_parts_and_merges() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = TenantId::default_tenant();
    let store = Store::open(config(dir.path())).await.unwrap();
    let labels = Labels::from_pairs([("__name__", "m"), ("job", "a")]);
    for round in 0..6 {
        let mut b = MetricBatchBuilder::new();
        let id = b.series(&labels, SeriesMeta { metric_type: Some("gauge"), ..SeriesMeta::default() });
        for i in 0..100 {
            b.sample(id, BASE / 1_000_000 + i * 1000, None, f64::from(round) + i as f64 / 1000.0);
        }
        let m = b.finish();
        let rows = vec![(Table::MetricSeries, m.series), (Table::MetricSamples, m.samples)];
        store.append(Append { tenant: tenant.clone(), rows, sources: vec![], batch_id: None }).await.unwrap();
        if round % 2 == 1 {
            store.flush().await.unwrap();
        }
        if round == 3 {
            store.compact().await.unwrap();
        }
        let series = store.series(&tenant, &[Matcher::equal("__name__", "m")], TimeRange::ALL).await.unwrap();
        assert_eq!(series.len(), 1);
        assert_eq!(series[0].metric_type.as_deref(), Some("gauge"));
        let request = ScanRequest::new(tenant.clone(), Table::MetricSamples, TimeRange::ALL)
            .selector(Selector::Ids(Arc::from([series[0].id])))
            .columns(&["ts_ms", "value"]);
        let mut last = std::collections::BTreeMap::new();
        for b in store.scan(request).await.unwrap().collect().await.unwrap() {
            let (ts, v) = (b.column(0).as_primitive::<Int64Type>(), b.column(1).as_primitive::<Float64Type>());
            for i in 0..b.num_rows() {
                last.insert(ts.value(i), v.value(i));
            }
        }
        assert_eq!(last.len(), 100);
        for (i, v) in last.values().enumerate() {
            assert_eq!(*v, f64::from(round) + i as f64 / 1000.0, "round {round} sample {i}");
        }
    }
    store.close().await.unwrap();
    let store = Store::open(config(dir.path())).await.unwrap();
    let series = store.series(&tenant, &[Matcher::equal("job", "a")], TimeRange::ALL).await.unwrap();
    assert_eq!(series.len(), 1, "series come back from parts");
    assert_eq!(*series[0].labels, labels);
}

#[tokio::test]
async fn a_trace_is_found_wherever_its_spans_rest() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = TenantId::default_tenant();
    let store = Store::open(config(dir.path())).await.unwrap();
    for round in 0..4u8 {
        let mut b = SpanBatchBuilder::new();
        for trace in 0..50u8 {
            b.push(&SpanRow {
                trace_id: &[trace + 1; 16],
                span_id: &[round + 1; 8],
                parent_span_id: (round > 0).then_some(&[1; 8][..]),
                ts: BASE + i64::from(trace) * HOUR / 50 + i64::from(round),
                duration_ns: 5,
                name: "op",
                ..SpanRow::default()
            });
        }
        let rows = vec![(Table::Spans, b.finish())];
        store.append(Append { tenant: tenant.clone(), rows, sources: vec![], batch_id: None }).await.unwrap();
        if round < 3 {
            store.flush().await.unwrap();
        }
        if round == 1 {
            store.compact().await.unwrap();
        }
        let request = ScanRequest::new(tenant.clone(), Table::Spans, TimeRange::ALL)
            .selector(Selector::Trace([8; 16]))
            .columns(&["span_id", "name", "nested_left"]);
        let found: usize =
            store.scan(request).await.unwrap().collect().await.unwrap().iter().map(|b| b.num_rows()).sum();
        assert_eq!(found, usize::from(round) + 1);
    }
}

#[tokio::test]
async fn positions_and_batch_ids_survive_a_crash_and_a_clean_stop() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = TenantId::default_tenant();
    let mut store = Store::open(config(dir.path())).await.unwrap();
    for round in 0..4u64 {
        let mut b = LogBatchBuilder::new();
        b.push(&LogRow { ts: BASE + round as i64, stream_labels: "{\"app\":\"a\"}", body: "x", ..LogRow::default() });
        let append = Append {
            tenant: tenant.clone(),
            rows: vec![(Table::Logs, b.finish())],
            sources: vec![SourcePosition { key: "file-1".into(), position: round * 10 }],
            batch_id: Some([round as u8; 16]),
        };
        assert!(!store.append(append.clone()).await.unwrap().duplicate);
        assert!(store.append(append.clone()).await.unwrap().duplicate);
        if round % 2 == 0 {
            store.close().await.unwrap();
        } else {
            store.abandon().await.unwrap();
        }
        assert!(store.append(append.clone()).await.is_err(), "a closed store takes nothing");
        store = Store::open(config(dir.path())).await.unwrap();
        assert_eq!(store.position(&tenant, "file-1"), Some(round * 10));
        assert!(store.append(append).await.unwrap().duplicate, "round {round}");
        let request = ScanRequest::new(tenant.clone(), Table::Logs, TimeRange::ALL);
        let n: usize = store.scan(request).await.unwrap().collect().await.unwrap().iter().map(|b| b.num_rows()).sum();
        assert_eq!(n as u64, round + 1);
    }
}

/// Column `a_k` of all live parts of the logs, in any order; `None` where a part has no such column.
fn promoted_values(dir: &std::path::Path) -> Vec<Option<Vec<String>>> {
    let mut out = Vec::new();
    for day in std::fs::read_dir(dir.join("data/default/logs")).unwrap().flatten() {
        if !day.file_name().to_string_lossy().starts_with("day=") {
            continue;
        }
        for file in std::fs::read_dir(day.path()).unwrap().flatten() {
            let file = std::fs::File::open(file.path()).unwrap();
            let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            if reader.schema().index_of("a_k").is_err() {
                out.push(None);
                continue;
            }
            let mut values = Vec::new();
            for batch in reader.build().unwrap() {
                let batch = batch.unwrap();
                let column = batch.column_by_name("a_k").unwrap().as_string::<i32>();
                values.extend(column.iter().map(|v| v.unwrap_or("-").to_owned()));
            }
            values.sort();
            out.push(Some(values));
        }
    }
    out.sort();
    out
}

#[tokio::test]
async fn promoted_attributes_come_with_new_parts_and_merges_and_go_as_they_are_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = TenantId::default_tenant();
    let append = async |store: &Store, attrs: Option<&str>| {
        let mut b = LogBatchBuilder::new();
        b.push(&LogRow { ts: BASE, stream_labels: "{\"app\":\"a\"}", body: "x", attrs, ..LogRow::default() });
        let rows = vec![(Table::Logs, b.finish())];
        store.append(Append { tenant: tenant.clone(), rows, sources: vec![], batch_id: None }).await.unwrap();
        store.flush().await.unwrap();
    };
    let some = |v: &[&str]| Some(v.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
    let mut with = config(dir.path());
    with.promoted = storage::Promoted::new(&["k"]).unwrap();
    let store = Store::open(config(dir.path())).await.unwrap();
    append(&store, Some(r#"{"k":"one"}"#)).await;
    store.close().await.unwrap();
    let store = Store::open(with).await.unwrap();
    append(&store, Some(r#"{"k":2}"#)).await;
    append(&store, None).await;
    assert_eq!(promoted_values(dir.path()), [None, some(&["-"]), some(&["2"])]);
    let log = std::fs::read_dir(dir.path().join("data/default/logs/_delta_log")).unwrap().flatten();
    let known = log.filter(|e| std::fs::read_to_string(e.path()).unwrap_or_default().contains("a_k")).count();
    assert!(known > 0, "the table's schema has the column");
    let all = async |store: &Store| {
        let request = ScanRequest::new(tenant.clone(), Table::Logs, TimeRange::ALL);
        let batches = store.scan(request).await.unwrap().collect().await.unwrap();
        batches.iter().map(|b| b.num_rows()).sum::<usize>()
    };
    assert_eq!(all(&store).await, 3, "parts with and without the column");
    store.compact().await.unwrap();
    assert_eq!(promoted_values(dir.path()), [some(&["-", "2", "one"])], "a merge derives it for old rows");
    store.close().await.unwrap();
    let store = Store::open(config(dir.path())).await.unwrap();
    append(&store, Some(r#"{"k":3}"#)).await;
    assert_eq!(all(&store).await, 4);
    assert_eq!(promoted_values(dir.path()), [None, some(&["-", "2", "one"])]);
    store.close().await.unwrap();
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(config(dir.path())).await.unwrap();
    let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
    let row = |app: &str| vec![Row { ts: BASE, app: app.into(), body: "x".into() }];
    append_logs(&store, &a, &row("of-a")).await;
    append_logs(&store, &b, &row("of-b")).await;
    store.flush().await.unwrap();
    for (tenant, app) in [(&a, "of-a"), (&b, "of-b")] {
        let request = ScanRequest::new(tenant.clone(), Table::Logs, TimeRange::ALL);
        let rows = rows_of(&store.scan(request).await.unwrap().collect().await.unwrap());
        assert_eq!(rows.iter().map(|r| r.app.as_str()).collect::<Vec<_>>(), [app]);
        let streams = store.streams(tenant, &[], TimeRange::ALL).await.unwrap();
        assert_eq!(streams.len(), 1);
        assert_eq!(streams[0].labels.get("app"), Some(app));
    }
    assert_eq!(store.tenants(), [a, b]);
}

/// Bodies of several templates, so that a part tears apart what arrived together.
fn tied_rows(rng: &mut StdRng, next: &mut i64) -> Vec<Row> {
    let n = rng.random_range(1..120);
    (0..n)
        .map(|_| {
            *next += 1;
            let body = match rng.random_range(0..4) {
                0 => format!("request {next} done"),
                1 => format!("took {next} ms"),
                2 => format!("zebra {next}"),
                _ => format!("{next}: a line"),
            };
            // A second each, and some of an earlier hour.
            let ts = BASE + rng.random_range(0..2) * HOUR + rng.random_range(0..6) * 1_000_000_000;
            Row { ts, app: format!("app{}", rng.random_range(0..3)), body }
        })
        .collect()
}

#[tokio::test]
async fn equal_times_of_a_stream_come_in_the_order_they_arrived() {
    for seed in seeds(10) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x7135);
        let dir = tempfile::tempdir().unwrap();
        let tenant = TenantId::default_tenant();
        let mut store = Store::open(config(dir.path())).await.unwrap();
        let (mut model, mut next) = (Vec::<Row>::new(), 0);
        for step in 0..24 {
            match rng.random_range(0..10) {
                0..=5 => {
                    let rows = tied_rows(&mut rng, &mut next);
                    append_logs(&store, &tenant, &rows).await;
                    model.extend(rows);
                }
                6..=7 => store.flush().await.unwrap(),
                8 => store.compact().await.unwrap(),
                _ => {
                    store.abandon().await.unwrap();
                    store = Store::open(config(dir.path())).await.unwrap();
                }
            }
            let app = format!("app{}", rng.random_range(0..3));
            let request = ScanRequest::new(tenant.clone(), Table::Logs, TimeRange::ALL)
                .columns(&["ts", "stream_labels", "body"])
                .selector(Selector::Labels(vec![Matcher::equal("app", app.as_str())]));
            let mut want: Vec<Row> = model.iter().filter(|r| r.app == app).cloned().collect();
            want.sort_by_key(|r| r.ts);
            for order in [ScanOrder::TimeAscending, ScanOrder::TimeDescending] {
                let limit = rng.random_bool(0.5).then(|| rng.random_range(1..60));
                let got = store.scan(request.clone().order(order, limit)).await.unwrap().collect().await.unwrap();
                let top: Vec<Row> = want.iter().take(limit.unwrap_or(usize::MAX)).cloned().collect();
                assert_eq!(rows_of(&got), top, "seed {seed} step {step} {order:?} limit {limit:?}");
                want.reverse();
            }
        }
    }
}

#[tokio::test]
async fn a_delete_takes_what_matches_and_nothing_else() {
    for seed in seeds(10) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xde1e);
        let dir = tempfile::tempdir().unwrap();
        let tenant = TenantId::default_tenant();
        let mut store = Store::open(config(dir.path())).await.unwrap();
        let (mut model, mut next, mut deleted) = (Vec::<Row>::new(), 0i64, 0);
        for step in 0..26 {
            let what = format!("seed {seed} step {step}");
            match rng.random_range(0..10) {
                0..=4 => {
                    let rows: Vec<Row> = (0..rng.random_range(1..200))
                        .map(|_| {
                            next += 1;
                            Row {
                                ts: BASE + rng.random_range(0..3 * HOUR) / 10_000 * 10_000 + next % 10_000,
                                app: format!("app{}", rng.random_range(0..4)),
                                body: format!("request {} took {} ms", next, rng.random_range(0..1000)),
                            }
                        })
                        .collect();
                    append_logs(&store, &tenant, &rows).await;
                    model.extend(rows);
                }
                5 => store.flush().await.unwrap(),
                6 => store.compact().await.unwrap(),
                7 => {
                    store.abandon().await.unwrap();
                    store = Store::open(config(dir.path())).await.unwrap();
                }
                _ => {
                    let start = BASE + rng.random_range(-HOUR..3 * HOUR);
                    let range = match rng.random_bool(0.3) {
                        true => TimeRange::ALL,
                        false => {
                            TimeRange::new(Timestamp(start), Timestamp(start + rng.random_range(1..HOUR))).unwrap()
                        }
                    };
                    let app = format!("app{}", rng.random_range(0..5));
                    let filter = rng.random_bool(0.6);
                    let request = DeleteRequest {
                        tenant: tenant.clone(),
                        table: Table::Logs,
                        selector: Selector::Labels(vec![Matcher::equal("app", app.as_str())]),
                        range,
                        filter: filter.then(|| Arc::new(Contains("7")) as Arc<dyn RowFilter>),
                    };
                    let receipt = store.delete(request.clone()).await.unwrap();
                    let before = model.len();
                    model.retain(|r| {
                        r.app != app || !range.contains(Timestamp(r.ts)) || (filter && !r.body.contains('7'))
                    });
                    assert_eq!(receipt.rows, (before - model.len()) as u64, "{what}");
                    assert_eq!(receipt.files > 0, receipt.rows > 0, "{what}");
                    deleted += receipt.rows;
                    assert_eq!(store.delete(request).await.unwrap(), Receipt::default(), "{what}: a second time");
                    let mut left: Vec<&str> = model.iter().map(|r| r.app.as_str()).collect();
                    left.sort_unstable();
                    left.dedup();
                    let streams = store.streams(&tenant, &[], TimeRange::ALL).await.unwrap();
                    let found: Vec<&str> = streams.iter().filter_map(|s| s.labels.get("app")).collect();
                    assert_eq!(found, left, "{what}: streams without a record are no streams");
                }
            }
            compare(&store, &tenant, &model, &mut rng, &what).await;
        }
        assert!(deleted > 0, "seed {seed}");
        store.close().await.unwrap();
        let store = Store::open(config(dir.path())).await.unwrap();
        compare(&store, &tenant, &model, &mut rng, &format!("seed {seed} end")).await;
    }
}

#[tokio::test]
async fn a_series_goes_with_its_last_point_and_comes_back_with_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = TenantId::default_tenant();
    let mut store = Store::open(config(dir.path())).await.unwrap();
    let base_ms = BASE / 1_000_000;
    let append = async |store: &Store, job: &str, at_ms: i64| {
        let mut b = MetricBatchBuilder::new();
        let id = b.series(&Labels::from_pairs([("__name__", "m"), ("job", job)]), SeriesMeta::default());
        (0..10).for_each(|i| b.sample(id, at_ms + i, None, 1.0));
        let m = b.finish();
        let rows = vec![(Table::MetricSeries, m.series), (Table::MetricSamples, m.samples)];
        store.append(Append { tenant: tenant.clone(), rows, sources: vec![], batch_id: None }).await.unwrap();
    };
    let jobs = async |store: &Store| {
        let found = store.series(&tenant, &[Matcher::equal("__name__", "m")], TimeRange::ALL).await.unwrap();
        found.iter().map(|s| s.labels.get("job").unwrap().to_owned()).collect::<Vec<_>>()
    };
    for job in ["a", "b"] {
        append(&store, job, base_ms).await;
        append(&store, job, base_ms + 24 * 3_600_000).await;
    }
    let job = |j: &str| vec![Matcher::equal("job", j)];
    let range =
        |from: i64, to: i64| TimeRange::new(Timestamp::from_millis(from), Timestamp::from_millis(to)).unwrap();
    // Half of a day's points: the series stays, and is not there on a day without points.
    let receipt = store.delete_series(&tenant, job("a"), range(base_ms, base_ms + 5)).await.unwrap();
    assert_eq!(receipt.rows, 5);
    assert_eq!(jobs(&store).await, ["a", "b"]);
    let receipt = store.delete_series(&tenant, job("a"), range(base_ms, base_ms + 100)).await.unwrap();
    assert_eq!(receipt.rows, 5);
    let first_day = store.series(&tenant, &[], range(base_ms, base_ms + 1000)).await.unwrap();
    assert_eq!(first_day.len(), 1, "{first_day:?}");
    assert_eq!(jobs(&store).await, ["a", "b"]);
    assert_eq!(store.delete_series(&tenant, job("a"), TimeRange::ALL).await.unwrap().rows, 10);
    assert_eq!(jobs(&store).await, ["b"]);
    for round in 0..2 {
        append(&store, "a", base_ms).await;
        assert_eq!(jobs(&store).await, ["a", "b"], "round {round}");
        store.abandon().await.unwrap();
        store = Store::open(config(dir.path())).await.unwrap();
        assert_eq!(jobs(&store).await, ["a", "b"], "round {round}");
        store.compact().await.unwrap();
        assert_eq!(store.delete_series(&tenant, job("a"), TimeRange::ALL).await.unwrap().rows, 10);
        assert_eq!(jobs(&store).await, ["b"], "round {round}");
    }
    store.close().await.unwrap();
}
