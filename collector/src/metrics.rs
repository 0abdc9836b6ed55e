//! What the push endpoints took and refused, for `/metrics`.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use http::StatusCode;
use pipeline::codec::{Reason, Rejected};
use storage::Repeats;

/// A push protocol, as a label value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    OtlpHttp,
    OtlpGrpc,
    Loki,
    Ndjson,
    RemoteWrite,
    /// Exported rows coming back.
    Import,
    /// Elasticsearch bulk.
    Elastic,
}

impl Protocol {
    const ALL: [Protocol; 7] = [
        Protocol::OtlpHttp,
        Protocol::OtlpGrpc,
        Protocol::Loki,
        Protocol::Ndjson,
        Protocol::RemoteWrite,
        Protocol::Import,
        Protocol::Elastic,
    ];

    /// What a sender is told that shall send later: Prometheus drops what is answered 429, the others wait.
    pub(crate) const fn rate_limited(self) -> StatusCode {
        match self {
            Protocol::OtlpHttp
            | Protocol::OtlpGrpc
            | Protocol::Loki
            | Protocol::Ndjson
            | Protocol::Import
            | Protocol::Elastic => StatusCode::TOO_MANY_REQUESTS,
            Protocol::RemoteWrite => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Prometheus' receiver refuses a sample at the newest time of its series that has another value there, and its senders know
    /// that answer. OTLP knows none; and of deltas the later of two sums at one time is the whole.
    pub(crate) const fn repeats(self) -> Repeats {
        match self {
            Protocol::RemoteWrite => Repeats::Refused,
            _ => Repeats::LaterWins,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Protocol::OtlpHttp => "otlp_http",
            Protocol::OtlpGrpc => "otlp_grpc",
            Protocol::Loki => "loki",
            Protocol::Ndjson => "ndjson",
            Protocol::RemoteWrite => "remote_write",
            Protocol::Import => "import",
            Protocol::Elastic => "elasticsearch",
        }
    }
}

/// Classes of answers: what a sender does next.
const OUTCOMES: [&str; 4] = ["ok", "refused", "too_large", "unavailable"];

fn outcome(status: StatusCode) -> usize {
    match status.as_u16() {
        200..300 => 0,
        413 => 2,
        429 | 500.. => 3,
        _ => 1,
    }
}

#[derive(Default)]
struct Counters {
    requests: [AtomicU64; OUTCOMES.len()],
    bytes: AtomicU64,
    accepted: AtomicU64,
    rejected: [AtomicU64; Reason::ALL.len()],
}

/// Counters of all push protocols.
#[derive(Default)]
pub struct IngestMetrics([Counters; Protocol::ALL.len()]);

impl IngestMetrics {
    /// `bytes`: of the body as sent.
    pub fn request(&self, protocol: Protocol, status: StatusCode, bytes: usize) {
        let c = &self.0[protocol as usize];
        c.requests[outcome(status)].fetch_add(1, Ordering::Relaxed);
        c.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Records that are acknowledged.
    pub fn accepted(&self, protocol: Protocol, records: u64) {
        self.0[protocol as usize].accepted.fetch_add(records, Ordering::Relaxed);
    }

    pub fn rejected(&self, protocol: Protocol, rejected: &Rejected) {
        for (reason, n) in rejected.by_reason() {
            self.0[protocol as usize].rejected[reason as usize].fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Prometheus text, one family after the other.
    pub fn render(&self, out: &mut String) {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        out.push_str("# TYPE collector_push_requests_total counter\n");
        for p in Protocol::ALL {
            for (name, n) in OUTCOMES.iter().zip(&self.0[p as usize].requests) {
                let protocol = p.name();
                let _ = writeln!(
                    out,
                    "collector_push_requests_total{{protocol=\"{protocol}\",outcome=\"{name}\"}} {}",
                    get(n)
                );
            }
        }
        out.push_str("# TYPE collector_push_bytes_total counter\n");
        for p in Protocol::ALL {
            let n = get(&self.0[p as usize].bytes);
            let _ = writeln!(out, "collector_push_bytes_total{{protocol=\"{}\"}} {n}", p.name());
        }
        out.push_str("# TYPE collector_push_records_accepted_total counter\n");
        for p in Protocol::ALL {
            let n = get(&self.0[p as usize].accepted);
            let _ = writeln!(out, "collector_push_records_accepted_total{{protocol=\"{}\"}} {n}", p.name());
        }
        out.push_str("# TYPE collector_push_records_rejected_total counter\n");
        for p in Protocol::ALL {
            for r in Reason::ALL {
                let n = get(&self.0[p as usize].rejected[r as usize]);
                // Reasons that never occurred are left out; the sum over reasons is the same.
                if n > 0 {
                    let (protocol, reason) = (p.name(), r.name());
                    let _ = writeln!(
                        out,
                        "collector_push_records_rejected_total{{protocol=\"{protocol}\",reason=\"{reason}\"}} {n}"
                    );
                }
            }
        }
    }
}
