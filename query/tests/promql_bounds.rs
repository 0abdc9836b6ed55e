//! Queries that ask for too much end with an error that says so.

use query::{
    error::QueryError,
    limits::Limits,
    promql::{Engine, EngineOptions, InstantRequest, RangeRequest},
};
use storage::{
    Append, Store, StoreConfig,
    model::{Labels, MetricBatchBuilder, Table, TenantId, batch::SeriesMeta},
};

const SERIES: i64 = 50;
const STEP_MS: i64 = 60_000;
const SAMPLES: i64 = 24 * 60;

/// A day of counters `c_total` by the minute, one of them reset in the middle.
async fn store(dir: &std::path::Path) -> Store {
    let mut config = StoreConfig::new(dir);
    config.durability = storage::Durability::None;
    config.background = false;
    let store = Store::open(config).await.unwrap();
    // In pieces, so that a series comes from several parts and from the head.
    for piece in 0..4 {
        let mut builder = MetricBatchBuilder::new();
        for n in 0..SERIES {
            let labels = Labels::from_pairs([
                ("__name__", "c_total".to_owned()),
                ("n", n.to_string()),
                ("job", (n % 3).to_string()),
            ]);
            let id = builder.series(&labels, SeriesMeta::default());
            for i in piece * SAMPLES / 4..(piece + 1) * SAMPLES / 4 {
                let value = if n == 7 && i > 700 { i - 700 } else { 1000 + i * (n + 1) };
                builder.sample(id, i * STEP_MS + 7, None, value as f64);
            }
        }
        let batch = builder.finish();
        let rows = vec![(Table::MetricSeries, batch.series), (Table::MetricSamples, batch.samples)];
        let append = Append { tenant: TenantId::default(), rows, sources: Vec::new(), batch_id: None };
        store.append(append).await.unwrap();
        if piece < 3 {
            store.flush().await.unwrap();
        }
    }
    store
}

fn range(query: &str, start_ms: i64, end_ms: i64, step_ms: i64) -> RangeRequest {
    RangeRequest { query: query.into(), start_ms, end_ms, step_ms, ..RangeRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_queries_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::new(store(dir.path()).await, Limits::default(), EngineOptions::default());
    let tenant = TenantId::default();
    let parens = format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000));
    let minus = format!("{}c_total", "-".repeat(100_000));
    let sums = format!("{}1", "1 + ".repeat(100_000));
    let calls = format!("{}c_total{}", "abs(".repeat(20_000), ")".repeat(20_000));
    let regex = format!("c_total{{n=~\"{}\"}}", "a".repeat(1 << 20));
    let alternatives = format!("c_total{{n=~\"{}\"}}", "(x{1000}){1000}|".repeat(1000));
    let replace = format!("label_replace(c_total, \"a\", \"$1\", \"n\", \"{}\")", "(a{1000}){1000}");
    for query in [parens, minus, sums, calls, regex, alternatives, replace] {
        let request = InstantRequest { query: query.clone(), time_ms: 60_000, ..InstantRequest::default() };
        let got = engine.instant(&tenant, request).await;
        let shown: String = query.chars().take(60).collect();
        match got {
            Err(QueryError::Syntax(_) | QueryError::BadData(_) | QueryError::Execution(_)) => {}
            other => panic!("{shown}: {other:?}"),
        }
    }
    // As deep as it may be, it is evaluated.
    for deep in [
        format!("{}c_total{}", "abs(".repeat(200), ")".repeat(200)),
        format!("{}c_total{}", "sum(".repeat(200), ")".repeat(200)),
        format!("{}c_total{}", "(".repeat(240), ")".repeat(240)),
        format!("{}c_total", "c_total + ".repeat(240)),
    ] {
        let request = InstantRequest { query: deep, time_ms: 60_000, ..InstantRequest::default() };
        assert!(engine.instant(&tenant, request).await.is_ok());
    }
    // Ten years by the second.
    let years = 10 * 365 * 86_400_000;
    for query in ["c_total", "1", "vector(1)", "rate(c_total[5m])"] {
        let got = engine.range(&tenant, range(query, 0, years, 1000)).await;
        assert!(matches!(got, Err(QueryError::Execution(_) | QueryError::BadData(_))), "{query}: {got:?}");
    }
    let inner = InstantRequest { query: "sum_over_time(vector(1)[10y:1s])".into(), ..InstantRequest::default() };
    let got = engine.instant(&tenant, inner).await;
    assert!(matches!(got, Err(QueryError::Execution(_))), "{got:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_in_pieces_answers_as_its_instants_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let tenant = TenantId::default();
    // What streaming holds at a time is far below what the day has.
    let whole = usize::try_from(SERIES * SAMPLES).unwrap();
    let limits = Limits { samples_max: whole / 2, ..Limits::default() };
    let engine = Engine::new(store, limits, EngineOptions::default());
    let end = SAMPLES * STEP_MS;
    for query in [
        "sum by (job) (rate(c_total[5m]))",
        "max(increase(c_total[1h] offset 3h))",
        "c_total{n=\"7\"}",
        "sum(c_total) - sum(c_total offset 1h)",
        "resets(c_total{n=\"7\"}[6h])",
        "count(last_over_time(c_total[10m]))",
    ] {
        let out = engine.range(&tenant, range(query, 500, end + 7_200_500, 1_800_000)).await.unwrap();
        assert!(out.stats.samples_peak <= whole / 2, "{query}: {:?}", out.stats);
        let query::promql::Value::Matrix(series) = out.value else { panic!("{query}") };
        assert!(!series.is_empty(), "{query}");
        let mut points = 0;
        for time_ms in (0..).map(|i| 500 + i * 1_800_000).take_while(|t| *t <= end + 7_200_500) {
            let request = InstantRequest { query: query.into(), time_ms, ..InstantRequest::default() };
            let out = engine.instant(&tenant, request).await.unwrap();
            let query::promql::Value::Vector { samples, .. } = out.value else { panic!("{query}") };
            for s in samples {
                let found = series.iter().find(|r| r.labels == s.labels).expect("a series of the instant");
                let point = found.points.iter().find(|p| p.0 == time_ms).expect("a point of the instant");
                assert_eq!(point.1, s.point, "{query} at {time_ms}");
                points += 1;
            }
        }
        assert_eq!(points, series.iter().map(|s| s.points.len()).sum::<usize>(), "{query}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_limit_of_a_query_is_named_and_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let tenant = TenantId::default();
    let limited = |limits: Limits| Engine::new(store.clone(), limits, EngineOptions::default());
    let day = |query: &str| range(query, 0, 86_400_000, 60_000);
    let by_tenant = query::limits::ByTenant {
        defaults: query::limits::TenantLimits {
            range_max: Some(std::time::Duration::from_secs(3600)),
            ..query::limits::TenantLimits::default()
        },
        ..query::limits::ByTenant::default()
    };
    // Short enough that its depth is what is wrong with it.
    let deep = format!("{}1{}", "(".repeat(10_000), ")".repeat(10_000));
    let long = format!("c_total{{n=\"{}\"}}", "a".repeat(2 << 20));
    for (what, limits, request, want) in [
        ("samples", Limits { samples_max: 1000, ..Limits::default() }, day("rate(c_total[5m])"), "too many samples"),
        ("series", Limits { series_max: 10, ..Limits::default() }, day("c_total"), "limit of 10 series per query"),
        (
            "time",
            Limits { timeout: std::time::Duration::from_nanos(1), ..Limits::default() },
            day("rate(c_total[5m])"),
            "query timed out in ",
        ),
        (
            "range",
            Limits { tenants: std::sync::Arc::new(by_tenant), ..Limits::default() },
            day("c_total"),
            "query time range exceeds the limit",
        ),
        ("steps", Limits::default(), range("1", 0, 10_000_000_000, 1), "steps per query"),
        ("depth", Limits::default(), day(&deep), "nested deeper than"),
        ("bytes", Limits::default(), day(&long), "bytes"),
    ] {
        let e = limited(limits).range(&tenant, request).await.expect_err(what);
        assert!(e.to_string().contains(want), "{what}: {e}");
    }
    // Nothing of it holds up a write, and what is written is seen by the next query.
    let mut builder = MetricBatchBuilder::new();
    let id = builder.series(&Labels::from_pairs([("__name__", "after")]), SeriesMeta::default());
    builder.sample(id, 60_000, None, 1.0);
    let batch = builder.finish();
    let rows = vec![(Table::MetricSeries, batch.series), (Table::MetricSamples, batch.samples)];
    store.append(Append { tenant: tenant.clone(), rows, sources: Vec::new(), batch_id: None }).await.unwrap();
    let request = InstantRequest { query: "after".into(), time_ms: 60_000, ..InstantRequest::default() };
    assert!(limited(Limits::default()).instant(&tenant, request).await.is_ok());
}
