//! What the process says about itself: `/ready`, `/healthz`, `/metrics` and the status page at `/`.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use collector::elastic;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use storage::{Store, metrics::MetricLine};

/// What the routes read.
pub struct Own {
    pub store: Store,
    /// False while starting and once stopping.
    pub ready: AtomicBool,
    pub started: Instant,
    /// Appends the metrics of the other parts.
    pub extra: Box<dyn Fn(&mut String) + Send + Sync>,
    /// `http://127.0.0.1:7600`.
    pub url: String,
    /// Shown on the status page: what is collected, where it is stored.
    pub facts: Vec<(String, String)>,
    /// What shippers of Elasticsearch are told.
    pub elastic_version: Arc<str>,
}

impl Own {
    /// All our metrics as Prometheus text.
    pub fn figures(&self) -> String {
        let mut lines = self.store.metrics().lines();
        lines.extend(self.store.series_lines());
        lines.extend(process_lines(self.started));
        let mut text = render(&lines);
        (self.extra)(&mut text);
        text
    }
}

pub fn routes(own: Arc<Own>) -> Router {
    Router::new()
        .route("/", get(status))
        .route("/ready", get(ready))
        .route("/-/ready", get(ready))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/-/healthy", get(|| async { "Sightline is Healthy.\n" }))
        .route("/metrics", get(metrics))
        .with_state(own)
}

/// What no route takes.
pub async fn nothing(method: Method, uri: Uri) -> Response {
    elastic::fallback(&method, uri.path())
        .unwrap_or_else(|| (StatusCode::NOT_FOUND, "404 page not found\n").into_response())
}

async fn ready(State(own): State<Arc<Own>>) -> Response {
    if own.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "Sightline is Ready.\n").into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "not ready: starting or stopping\n")
            .into_response()
    }
}

async fn metrics(State(own): State<Arc<Own>>) -> Response {
    let text = own.figures();
    let content = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (content, text).into_response()
}

/// Prometheus text 0.0.4. Lines of one family must follow each other.
pub fn render(lines: &[MetricLine]) -> String {
    let mut out = String::new();
    let mut family = "";
    for line in lines {
        if line.name != family {
            family = line.name;
            let _ = writeln!(out, "# HELP {family} {}\n# TYPE {family} {}", line.help, line.kind);
        }
        out.push_str(line.name);
        for (i, (name, value)) in line.labels.iter().enumerate() {
            out.push(if i == 0 { '{' } else { ',' });
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(out, "{name}=\"{value}\"");
        }
        if !line.labels.is_empty() {
            out.push('}');
        }
        let _ = writeln!(out, " {}", line.value);
    }
    out
}

/// The standard `process_*` metrics, from `/proc/self`.
pub fn process_lines(started: Instant) -> Vec<MetricLine> {
    let line = |name, help, kind, value| MetricLine { name, help, kind, labels: Vec::new(), value };
    let mut out = Vec::new();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = stat.rsplit_once(')')
    {
        let fields: Vec<f64> = rest.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
        if let [user, system] = fields[..] {
            out.push(line(
                "process_cpu_seconds_total",
                "User and system time of this process.",
                "counter",
                (user + system) / ticks,
            ));
        }
    }
    if let Ok(statm) = std::fs::read_to_string("/proc/self/statm")
        && let Some(pages) = statm.split_whitespace().nth(1).and_then(|p| p.parse::<f64>().ok())
    {
        let bytes = pages * rustix::param::page_size() as f64;
        out.push(line("process_resident_memory_bytes", "Resident memory.", "gauge", bytes));
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        out.push(line("process_open_fds", "Open file descriptors.", "gauge", files.count() as f64));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    out.push(line(
        "process_start_time_seconds",
        "Start of the process, Unix time.",
        "gauge",
        now - started.elapsed().as_secs_f64(),
    ));
    out
}

async fn status(State(own): State<Arc<Own>>, headers: HeaderMap) -> Response {
    if elastic::asks(&headers) {
        return elastic::root(&own.elastic_version);
    }
    let metrics = own.store.metrics();
    let mut rows = own.facts.clone();
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    row("Up for", humantime(own.started.elapsed().as_secs()));
    for line in metrics.lines().iter().filter(|l| l.name == "storage_rows_appended_total" && l.value > 0.0) {
        row(&format!("Rows taken: {}", line.labels[0].1), grouped(line.value as u64));
    }
    let get = |a: &std::sync::atomic::AtomicU64| a.load(Ordering::Relaxed);
    row("Rows in memory", grouped(get(&metrics.head_rows)));
    let (parts, part_rows) = (grouped(get(&metrics.parts)), grouped(get(&metrics.part_rows)));
    row("Parts", format!("{parts}, {part_rows} rows, {}", size(get(&metrics.part_bytes))));
    row("Write-ahead log", size(get(&metrics.wal_bytes)));
    // How many only: their names are nobody's business but theirs.
    row("Tenants", grouped(own.store.tenants().len() as u64));
    let page = dashboards::status_page(env!("CARGO_PKG_VERSION"), &own.url, &rows);
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// `12.3 MiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn humantime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {} s", seconds % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_valid_prometheus_text() {
        let line = |labels, value| MetricLine { name: "a_total", help: "A.", kind: "counter", labels, value };
        let text = render(&[line(vec![("l", "q\"\\\n".to_owned())], 1.0), line(vec![], 2.5)]);
        assert_eq!(text, "# HELP a_total A.\n# TYPE a_total counter\na_total{l=\"q\\\"\\\\\\n\"} 1\na_total 2.5\n");
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(size(5 << 20), "5.0 MiB");
        assert_eq!(grouped(1_234_567).replace('\u{202f}', " "), "1 234 567");
        assert_eq!(humantime(3_700), "1 h 1 min");
    }
}
