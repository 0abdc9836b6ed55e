//! What is exported and imported again is what was there, to the last bit.

use std::{collections::BTreeSet, fmt::Write as _};

use arrow::ipc::reader::StreamReader;
use axum::{Router, body::Body};
use http::Request;
use http_body_util::BodyExt as _;
use query::http::export::ndjson;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use storage::model::json::write_string;
use tower::ServiceExt as _;

use super::parquet_file;
use crate::tenancy::start;

/// Rows in the exported form, each different, with what is hard to keep: odd texts, times, doubles, empty and absent values.
struct Rows {
    rng: SmallRng,
    out: String,
}

impl Rows {
    fn text(&mut self) -> String {
        const ODD: [&str; 8] =
            ["", "ok", "\"quoted\"", "tab\tnewline\n", "\u{0}\u{1f}", "\u{10ffff}ü", "\\", "{\"a\":1}"];
        let n: u32 = self.rng.random();
        let mut out = String::new();
        write_string(&mut out, &format!("{}{}", ODD[self.rng.random_range(0..ODD.len())], n % 5));
        out
    }

    fn double(&mut self) -> String {
        let value = match self.rng.random_range(0..8) {
            0 => f64::from_bits(0x7ff0_0000_0000_0002),
            1 => f64::INFINITY,
            2 => -0.0,
            3 => f64::MIN_POSITIVE / 4.0,
            4 => f64::from_bits(self.rng.random()),
            _ => f64::from(self.rng.random_range(-9..9)) / 4.0,
        };
        if value.is_finite() { format!("{value:?}") } else { format!("\"0x{:016x}\"", value.to_bits()) }
    }

    fn hex(&mut self, bytes: usize) -> String {
        let hex: String = (0..bytes).map(|_| format!("{:02x}", self.rng.random_range(1..=255_u8))).collect();
        format!("\"{hex}\"")
    }

    /// `,"key":value`, or nothing half of the time.
    fn maybe(&mut self, key: &str, value: fn(&mut Rows) -> String) {
        if self.rng.random() {
            let value = value(self);
            let _ = write!(self.out, ",\"{key}\":{value}");
        }
    }

    fn must(&mut self, key: &str, value: &str) {
        let _ = write!(self.out, ",\"{key}\":{value}");
    }

    fn json(&mut self) -> String {
        let text = self.text();
        format!("{{\"k\":{text},\"n\":[1.5,{{\"$bytes\":\"AA==\"}}]}}")
    }

    fn int(&mut self) -> String {
        self.rng.random_range(-5..i64::from(u32::MAX)).to_string()
    }

    fn log(&mut self, n: i64) {
        self.out.push_str("{\"row\":\"log\"");
        self.must("ts", &(1_600_000_000_123_456_789 + n * 1_001).to_string());
        self.maybe("observed_ts", Rows::int);
        let stream = self.rng.random_range(0..4);
        self.must("stream_labels", &format!("{{\"app\":\"a\\\"{stream}\",\"service_name\":\"s\"}}"));
        self.maybe("service_name", Rows::text);
        self.maybe("severity_number", |r| r.rng.random_range(0..25).to_string());
        self.maybe("severity_text", Rows::text);
        self.maybe("event_name", Rows::text);
        self.maybe("flags", Rows::int);
        self.maybe("trace_id", |r| r.hex(16));
        self.maybe("span_id", |r| r.hex(8));
        let body = self.text();
        self.must("body", &body);
        self.maybe("body_type", |_| "\"json\"".to_owned());
        self.maybe("scope_name", Rows::text);
        for key in ["scope_meta", "resource_attrs", "resource_meta", "attrs"] {
            self.maybe(key, Rows::json);
        }
        self.maybe("dropped_attributes_count", Rows::int);
        self.out.push_str("}\n");
    }

    fn span(&mut self, n: i64) {
        self.out.push_str("{\"row\":\"span\"");
        let (trace, id) = (self.hex(16), self.hex(8));
        self.must("trace_id", &trace);
        self.must("span_id", &id);
        self.maybe("parent_span_id", |r| r.hex(8));
        self.must("ts", &(1_600_000_000_000_000_001 + n).to_string());
        self.must("duration_ns", &n.to_string());
        let name = self.text();
        self.must("name", &name);
        self.maybe("service_name", Rows::text);
        self.must("kind", "2");
        self.must("status_code", "1");
        self.maybe("status_message", Rows::text);
        self.maybe("trace_state", Rows::text);
        self.maybe("flags", Rows::int);
        self.maybe("scope_name", Rows::text);
        for key in ["scope_meta", "resource_attrs", "resource_meta", "attrs"] {
            self.maybe(key, Rows::json);
        }
        for key in ["events", "links"] {
            self.maybe(key, |r| format!("[{}]", r.json()));
        }
        for key in ["dropped_attributes_count", "dropped_events_count", "dropped_links_count"] {
            self.maybe(key, Rows::int);
        }
        self.out.push_str("}\n");
    }

    /// A point of each kind.
    fn points(&mut self, n: i64) {
        let series = n % 3;
        let labels = format!("{{\"__name__\":\"m{series}\",\"l\":\"\\\\{series}\"}}");
        let ts = (1_600_000_000_000 + n).to_string();
        let head = |rows: &mut Rows, kind: &str| {
            let _ = write!(rows.out, "{{\"row\":\"{kind}\",\"series_labels\":{labels}");
            if series > 0 {
                rows.must("type", "\"counter\"");
                rows.must("unit", "\"s\"");
            }
            if series > 1 {
                rows.must("help", "\"what \\\"it\\\" is\"");
                rows.must("origin", "{\"scope\":{\"name\":\"x\"}}");
            }
            rows.must("ts_ms", &ts);
        };
        head(self, "sample");
        self.maybe("start_ms", Rows::int);
        let value = self.double();
        self.must("value", &value);
        self.out.push_str("}\n");
        head(self, "histogram");
        self.maybe("start_ms", Rows::int);
        self.must("schema", "3");
        for key in ["zero_threshold", "zero_count", "count", "sum"] {
            let value = self.double();
            self.must(key, &value);
        }
        self.maybe("min", Rows::double);
        self.maybe("max", Rows::double);
        self.must("positive_offset", "-4");
        let counts = format!("[{},{}]", self.double(), self.double());
        self.must("positive_counts", &counts);
        self.must("negative_offset", "0");
        self.must("negative_counts", "[]");
        self.maybe("custom_bounds", |r| format!("[{}]", r.double()));
        self.must("reset_hint", "2");
        self.must("is_float", if n % 2 == 0 { "true" } else { "false" });
        self.out.push_str("}\n");
        head(self, "exemplar");
        let value = self.double();
        self.must("value", &value);
        self.maybe("trace_id", |r| r.hex(16));
        self.maybe("span_id", |r| r.hex(8));
        self.must("labels", "{\"user\":\"7\"}");
        self.out.push_str("}\n");
    }
}

async fn ask(router: &Router, tenant: &str, method: &str, url: &str, body: String) -> Vec<u8> {
    let request =
        Request::builder().method(method).uri(url).header("X-Scope-OrgID", tenant).header("X-Batch-Id", tenant);
    let answer = router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
    let status = answer.status();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes().to_vec();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
    bytes
}

/// All rows of a tenant.
async fn exported(router: &Router, tenant: &str) -> String {
    let mut out = String::new();
    for signal in ["logs", "traces", "metrics"] {
        let url = format!("/api/v1/export?signal={signal}");
        out.push_str(&String::from_utf8(ask(router, tenant, "GET", &url, String::new()).await).unwrap());
    }
    out
}

fn set(text: &str) -> BTreeSet<&str> {
    text.lines().collect()
}

#[track_caller]
fn same(a: &str, b: &str, seed: u64) {
    let (left, right) = (set(a), set(b));
    assert_eq!(a.lines().count(), b.lines().count(), "seed {seed}");
    let first: Vec<_> = left.symmetric_difference(&right).take(4).collect();
    assert!(first.is_empty(), "seed {seed}: {first:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_imported_is_the_same_to_the_last_bit() {
    for seed in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let app = start(dir.path()).await;
        let mut rows = Rows { rng: SmallRng::seed_from_u64(seed), out: String::new() };
        for n in 0..100 {
            rows.log(n);
            rows.span(n);
            rows.points(n);
        }
        let sent = rows.out;
        let answer = ask(&app.router, "a", "POST", "/api/v1/import", sent.clone()).await;
        assert!(answer.starts_with(b"{\"accepted\":500,"), "seed {seed}: {}", String::from_utf8_lossy(&answer));
        // Again, as after a lost answer: stored once.
        ask(&app.router, "a", "POST", "/api/v1/import", sent.clone()).await;
        let first = exported(&app.router, "a").await;
        same(&first, &sent, seed);
        ask(&app.router, "b", "POST", "/api/v1/import", first.clone()).await;
        same(&exported(&app.router, "b").await, &sent, seed);
        let mut packed = String::new();
        for (signal, table) in [
            ("logs", storage::model::Table::Logs),
            ("traces", storage::model::Table::Spans),
            ("samples", storage::model::Table::MetricSamples),
            ("histograms", storage::model::Table::MetricHistograms),
            ("exemplars", storage::model::Table::MetricExemplars),
        ] {
            let url = format!("/api/v1/export?format=arrow&signal={signal}");
            let bytes = ask(&app.router, "b", "GET", &url, String::new()).await;
            let batches = StreamReader::try_new(&bytes[..], None).unwrap();
            let path = dir.path().join(signal);
            parquet_file::write(&path, table, batches.map(|b| b.map_err(|e| e.to_string()))).unwrap();
            let (kind, batches) = parquet_file::read(&path).unwrap();
            assert_eq!(kind, table);
            batches.for_each(|b| packed.push_str(&ndjson(table, &b.unwrap()).unwrap()));
        }
        same(&packed, &sent, seed);
        assert!(app.stop().await);
    }
}
