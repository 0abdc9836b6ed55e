//! What was sent, what each answer obliges the server to, and the exact content of every record.
//!
//! Content follows from the seed and the record's id alone, so the judge computes what must come back instead of
//! remembering it. An acknowledged request is an obligation; one without an answer may be there once or not at all.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};

pub const HOUR: i64 = 3_600_000_000_000;
pub const DAY: i64 = 24 * HOUR;
/// Old days that are written in turn; long enough apart for their parts to be merged in between.
pub const DAYS: u64 = 40;
/// Hours of an old day that get rows.
const HOURS: u64 = 3;

/// Splitmix64: small, seeded, the same everywhere.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// 1 to 2, with all its bits.
    pub fn fraction(&mut self) -> f64 {
        f64::from_bits(1023 << 52 | self.next() >> 12)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Ndjson,
    Loki,
    Points,
    /// Points by remote write.
    Written,
    /// Spans of new traces.
    Spans,
    /// More spans of the traces of an earlier request, whose ids it shares.
    MoreSpans,
}

impl Kind {
    pub fn is_log(self) -> bool {
        matches!(self, Kind::Ndjson | Kind::Loki)
    }

    /// The metric of a request of points.
    pub fn metric(self) -> Option<&'static str> {
        match self {
            Kind::Points => Some("torture_gauge"),
            Kind::Written => Some("torture_written"),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// No 2xx: once or not at all.
    Maybe,
    /// 2xx, or seen by a judge: once, for ever.
    Owed,
}

/// One request: records `first..first + count`.
#[derive(Clone, Debug)]
pub struct Request {
    pub kind: Kind,
    pub first: u64,
    pub count: u64,
    pub writer: u64,
    /// Event time of the first record, ns; the others follow at [`step`].
    pub base: i64,
    /// An old day, or `None` for the present.
    pub day: Option<u64>,
    pub fate: Fate,
    /// Times it was sent again under its batch id.
    pub resent: u64,
}

/// Between the records of a request, ns: points must differ in their milliseconds.
pub fn step(kind: Kind) -> i64 {
    if kind.metric().is_some() { 1_000_000 } else { 1_000 }
}

impl Request {
    pub fn ids(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }

    pub fn ts(&self, id: u64) -> i64 {
        self.base + (id - self.first) as i64 * step(self.kind)
    }

    pub fn batch_id(&self) -> String {
        format!("torture-{}", self.first)
    }
}

/// One run: its seed and its place in time.
pub struct Oracle {
    pub seed: u64,
    next_id: AtomicU64,
    /// Midnight that ends the newest old day.
    pub midnight: i64,
    /// No record of the present is older, ns.
    pub began: i64,
}

pub fn now_ns() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    since.as_nanos() as i64
}

impl Oracle {
    pub fn new(seed: u64) -> Self {
        let now = now_ns();
        Oracle { seed, next_id: AtomicU64::new(1), midnight: (now / DAY - 1) * DAY, began: now }
    }

    /// Half-open event time of an old day.
    pub fn day(&self, day: u64) -> (i64, i64) {
        let end = self.midnight - day as i64 * DAY;
        (end - DAY, end)
    }

    /// A request for new records. `present`: the writer's own clock, moved on; `None` for an old day.
    pub fn plan(&self, kind: Kind, count: u64, writer: u64, cycle: u64, present: Option<&mut i64>) -> Request {
        let first = self.next_id.fetch_add(count, Ordering::Relaxed);
        let day = cycle % DAYS;
        let (base, day) = match present {
            Some(clock) => {
                let base = now_ns().max(*clock) / 1_000_000 * 1_000_000;
                *clock = base + count as i64 * step(kind) + 1_000_000;
                (base, None)
            }
            // Ids are unique, so are the times.
            None => {
                let into_hour = first as i64 * step(kind);
                assert!(into_hour < HOUR - 10_000 * step(kind), "too many records for one run");
                (self.day(day).0 + (first % HOURS) as i64 * HOUR + into_hour, Some(day))
            }
        };
        Request { kind, first, count, writer, base, day, fate: Fate::Maybe, resent: 0 }
    }

    fn rng(&self, id: u64, salt: u64) -> Rng {
        let mut rng = Rng::new(self.seed ^ id.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (salt << 56));
        rng.next();
        rng
    }

    /// Body and structured metadata of a log record; metadata includes `id` and `level`.
    pub fn line(&self, id: u64) -> (String, Vec<(&'static str, String)>) {
        let mut rng = self.rng(id, 1);
        let mut line = match rng.below(5) {
            0 => format!("GET /cart/{} took {} ms", rng.below(1000), rng.below(90_000)),
            1 => format!("käse ✓ \"{}\" back\\slash\ttab {}", rng.below(9), rng.below(1 << 40)),
            2 => format!("worker {} took job {:016x} from queue", rng.below(16), rng.next()),
            3 => "same every time".to_owned(),
            _ => format!("{{\"nested\":{{\"n\":{}}},\"s\":\"x\"}}", rng.below(100)),
        };
        if rng.one_in(40) {
            line.push_str(&format!(" {:x}", rng.next()).repeat(1 + rng.below(200) as usize));
        }
        let level = ["info", "warn", "error", "debug"][rng.below(4) as usize];
        let mut metadata = vec![("id", format!("r{id}")), ("level", level.to_owned())];
        if rng.one_in(2) {
            metadata.push(("user", format!("u{}", rng.below(50))));
        }
        if rng.one_in(4) {
            metadata.push(("ratio", (rng.below(1 << 20) as f64 / 1024.0 + 0.5 / 1024.0).to_string()));
        }
        if rng.one_in(3) {
            metadata.push(("order", format!("{:x}", rng.next())));
        }
        (line, metadata)
    }

    /// Labels as a query answers them.
    pub fn labels(&self, id: u64, writer: u64, app: &str) -> BTreeMap<String, String> {
        let (_, metadata) = self.line(id);
        let mut labels: BTreeMap<String, String> = metadata.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
        labels.insert("detected_level".into(), labels["level"].clone());
        labels.insert("app".into(), app.to_owned());
        labels.insert("service_name".into(), app.to_owned());
        labels.insert("writer".into(), format!("w{writer}"));
        labels
    }

    pub fn value(&self, id: u64) -> f64 {
        let mut rng = self.rng(id, 2);
        match rng.below(4) {
            0 => id as f64,
            1 => rng.below(1 << 30) as f64 / 1000.0,
            2 => -(rng.below(1000) as f64) / 8.0,
            // Any bits of a usual size.
            _ => f64::from_bits((rng.next() >> 12) | (rng.below(2) << 63) | ((1023 - 20 + rng.below(40)) << 52)),
        }
    }

    pub fn trace_id(&self, id: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.rng(id, 3).next().to_be_bytes());
        bytes[8..].copy_from_slice(&id.to_be_bytes());
        bytes
    }

    /// Spans of a trace by the request kind that carries them, as Tempo's JSON writes them.
    pub fn spans(&self, id: u64, ts: i64, kind: Kind) -> Vec<Value> {
        let mut rng = self.rng(id, if kind == Kind::Spans { 4 } else { 5 });
        let more = u8::from(kind == Kind::MoreSpans);
        let trace = base64(&self.trace_id(id));
        let span_id = |n: u64| base64(&[&[more + 1, n as u8][..], &id.to_be_bytes()[2..]].concat());
        (0..1 + rng.below(4))
            .map(|n| {
                let start = ts + n as i64 * 10;
                let kind = ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT", "SPAN_KIND_INTERNAL"][rng.below(3) as usize];
                let mut span = json!({
                    "traceId": trace, "spanId": span_id(n), "name": format!("op {}", rng.below(8)),
                    "kind": kind,
                    "startTimeUnixNano": start.to_string(),
                    "endTimeUnixNano": (start + rng.below(1 << 32) as i64).to_string(),
                    // Sorted: a set of attributes has no order, and ours come back by name.
                    "attributes": [
                        { "key": "id", "value": { "intValue": id.to_string() } },
                        { "key": "ok", "value": { "boolValue": rng.one_in(2) } },
                        { "key": "path", "value": { "stringValue": format!("/é/{:x}", rng.next()) } },
                        { "key": "ratio", "value": { "doubleValue": rng.fraction() } },
                    ],
                    "status": {},
                });
                if n > 0 {
                    span["parentSpanId"] = span_id(0).into();
                }
                if rng.one_in(3) {
                    span["events"] = json!([{ "timeUnixNano": (start + 5).to_string(), "name": "retry",
                        "attributes": [{ "key": "try", "value": { "intValue": rng.below(9).to_string() } }] }]);
                }
                if rng.one_in(4) {
                    span["status"] = json!({ "message": "gave up", "code": "STATUS_CODE_ERROR" });
                }
                span
            })
            .collect()
    }

    /// Path, content type and body of a request; the same bytes each time.
    pub fn encode(&self, request: &Request, app: &str) -> (&'static str, &'static str, Vec<u8>) {
        let r = request;
        let writer = format!("w{}", r.writer);
        match r.kind {
            Kind::Ndjson => {
                let mut body = String::new();
                for id in r.ids() {
                    let (line, metadata) = self.line(id);
                    let mut record = json!({ "ts": r.ts(id), "msg": line, "app": app, "writer": writer });
                    for (name, value) in metadata {
                        record[name] = match value.parse::<f64>() {
                            Ok(number) if name == "ratio" => number.into(),
                            _ => value.into(),
                        };
                    }
                    body.push_str(&format!("{record}\n"));
                }
                let path = "/ingest/ndjson?time_field=ts&message_field=msg&stream_fields=app,writer";
                (path, "application/x-ndjson", body.into_bytes())
            }
            Kind::Loki => {
                let values: Vec<Value> = r
                    .ids()
                    .map(|id| {
                        let (line, metadata) = self.line(id);
                        let metadata: serde_json::Map<String, Value> =
                            metadata.into_iter().map(|(n, v)| (n.to_owned(), v.into())).collect();
                        json!([r.ts(id).to_string(), line, metadata])
                    })
                    .collect();
                let body = json!({ "streams": [{ "stream": { "app": app, "writer": writer }, "values": values }] });
                ("/loki/api/v1/push", "application/json", body.to_string().into_bytes())
            }
            Kind::Points => {
                let points: Vec<Value> = r
                    .ids()
                    .map(|id| {
                        json!({ "attributes": [{ "key": "writer", "value": { "stringValue": writer } }],
                            "timeUnixNano": r.ts(id).to_string(), "asDouble": self.value(id) })
                    })
                    .collect();
                let metric = json!({ "name": "torture_gauge", "gauge": { "dataPoints": points } });
                let body = json!({ "resourceMetrics": [{ "resource": resource(app),
                    "scopeMetrics": [{ "metrics": [metric] }] }] });
                ("/v1/metrics", "application/json", body.to_string().into_bytes())
            }
            Kind::Written => {
                let mut series = Vec::new();
                for (name, value) in [("__name__", "torture_written"), ("job", app), ("writer", writer.as_str())] {
                    let label = [field(1, name.as_bytes()), field(2, value.as_bytes())].concat();
                    series.extend(field(1, &label));
                }
                for id in r.ids() {
                    let mut sample = vec![1 << 3 | 1];
                    sample.extend(self.value(id).to_le_bytes());
                    sample.push(2 << 3);
                    sample.extend(varint(r.ts(id) as u64 / 1_000_000));
                    series.extend(field(2, &sample));
                }
                let body = snap::raw::Encoder::new().compress_vec(&field(1, &series)).expect("small enough");
                ("/api/v1/write", "application/x-protobuf", body)
            }
            Kind::Spans | Kind::MoreSpans => {
                let spans: Vec<Value> = r.ids().flat_map(|id| self.spans(id, r.ts(id), r.kind)).map(sent).collect();
                let body = json!({ "resourceSpans": [{ "resource": resource(app),
                    "scopeSpans": [{ "scope": { "name": "torture" }, "spans": spans }] }] });
                ("/v1/traces", "application/json", body.to_string().into_bytes())
            }
        }
    }
}

fn varint(mut v: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
    out
}

/// A length-delimited field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2][..], &varint(bytes.len() as u64), bytes].concat()
}

fn resource(app: &str) -> Value {
    json!({ "attributes": [{ "key": "service.name", "value": { "stringValue": app } }] })
}

/// A span as OTLP's JSON wants it: ids in hex, enums as numbers.
fn sent(mut span: Value) -> Value {
    for key in ["traceId", "spanId", "parentSpanId"] {
        if let Some(text) = span[key].as_str() {
            span[key] = hex(&from_base64(text)).into();
        }
    }
    if span["parentSpanId"].is_null() {
        span.as_object_mut().expect("an object").remove("parentSpanId");
    }
    let kind = match span["kind"].as_str() {
        Some("SPAN_KIND_SERVER") => 2,
        Some("SPAN_KIND_CLIENT") => 3,
        _ => 1,
    };
    span["kind"] = kind.into();
    if !span["status"]["code"].is_null() {
        span["status"]["code"] = 2.into();
    }
    span
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, b| (w << 8) | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

fn from_base64(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.bytes().filter_map(|c| ALPHABET.iter().position(|a| *a == c)).map(|d| d as u32).collect();
    let mut out = Vec::new();
    for chunk in digits.chunks(4) {
        let word = chunk.iter().fold(0u32, |w, d| (w << 6) | d) << (6 * (4 - chunk.len()));
        out.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    out
}
