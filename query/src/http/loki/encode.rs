//! Loki's JSON answers, written without an intermediate tree. Strings are HTML-escaped as Go's encoder does.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use storage::{ScanStats, model::Labels};

use crate::logql::{Kind, Label, LogEntry, Sample, Series};

/// What a query cost.
pub struct Cost {
    pub scans: Vec<Arc<ScanStats>>,
    pub elapsed: Duration,
    /// Entries or samples returned.
    pub returned: usize,
}

/// Appends a JSON string. `<`, `>`, `&`, U+2028 and U+2029 are escaped.
pub fn string(out: &mut String, text: &str) {
    out.push('"');
    let mut from = 0;
    for (i, c) in text.char_indices() {
        let escape = match c {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{8}' => "\\b",
            '\u{c}' => "\\f",
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                out.push_str(&text[from..i]);
                from = i + c.len_utf8();
                let _ = write!(out, "\\u{:04x}", c as u32);
                continue;
            }
            _ => continue,
        };
        out.push_str(&text[from..i]);
        from = i + c.len_utf8();
        out.push_str(escape);
    }
    out.push_str(&text[from..]);
    out.push('"');
}

fn map<'a>(out: &mut String, pairs: impl Iterator<Item = (&'a str, &'a str)>) {
    out.push('{');
    for (i, (name, value)) in pairs.enumerate() {
        if i > 0 {
            out.push(',');
        }
        string(out, name);
        out.push(':');
        string(out, value);
    }
    out.push('}');
}

/// Appends a label set as an object.
pub fn labels(out: &mut String, labels: &Labels) {
    map(out, labels.iter());
}

/// Seconds with up to three decimals, from nanoseconds.
fn seconds(out: &mut String, nanos: i64) {
    let millis = nanos.div_euclid(1_000_000);
    let (s, ms) = (millis.div_euclid(1000), millis.rem_euclid(1000));
    if ms == 0 {
        let _ = write!(out, "{s}");
    } else {
        let _ = write!(out, "{}", format!("{s}.{ms:03}").trim_end_matches('0'));
    }
}

/// A sample value as Go's `strconv.FormatFloat(v, 'f', -1, 64)`.
fn value(out: &mut String, v: f64) {
    if v.is_nan() {
        out.push_str("NaN");
    } else if v.is_infinite() {
        out.push_str(if v > 0.0 { "+Inf" } else { "-Inf" });
    } else {
        let _ = write!(out, "{v}");
    }
}

fn sample(out: &mut String, nanos: i64, v: f64) {
    out.push('[');
    seconds(out, nanos);
    out.push_str(",\"");
    value(out, v);
    out.push_str("\"]");
}

fn head(kind: &str) -> String {
    format!("{{\"status\":\"success\",\"data\":{{\"resultType\":\"{kind}\",")
}

fn tail(mut out: String, cost: &Cost) -> String {
    out.push_str(",\"stats\":");
    stats(&mut out, cost);
    out.push_str("}}");
    out
}

/// `[<milliseconds>,"<value>"]`: the one place where Loki counts in milliseconds.
pub fn scalar(time: i64, v: f64, cost: &Cost) -> String {
    let mut out = head("scalar");
    let _ = write!(out, "\"result\":[{},\"", time.div_euclid(1_000_000));
    value(&mut out, v);
    out.push_str("\"]");
    tail(out, cost)
}

pub fn vector(time: i64, samples: &[Sample], cost: &Cost) -> String {
    volumes(time, samples, false, cost)
}

/// A vector; `names_only`: the metric has the labels' names with empty values.
pub fn volumes(time: i64, samples: &[Sample], names_only: bool, cost: &Cost) -> String {
    let mut out = head("vector");
    out.push_str("\"result\":[");
    for (i, s) in samples.iter().enumerate() {
        out.push_str(if i > 0 { ",{\"metric\":" } else { "{\"metric\":" });
        metric(&mut out, &s.labels, names_only);
        out.push_str(",\"value\":");
        sample(&mut out, time, s.value);
        out.push('}');
    }
    out.push(']');
    tail(out, cost)
}

/// `times[i]` is the time of value `i`, nanoseconds.
pub fn matrix(times: &[i64], series: &[Series], cost: &Cost) -> String {
    volume_matrix(times, series, false, cost)
}

fn metric(out: &mut String, set: &Labels, names_only: bool) {
    map(out, set.iter().map(|(n, v)| (n, if names_only { "" } else { v })));
}

/// As [`matrix`]; `names_only` as in [`volumes`].
pub fn volume_matrix(times: &[i64], series: &[Series], names_only: bool, cost: &Cost) -> String {
    let mut out = head("matrix");
    out.push_str("\"result\":[");
    for (i, s) in series.iter().enumerate() {
        out.push_str(if i > 0 { ",{\"metric\":" } else { "{\"metric\":" });
        metric(&mut out, &s.labels, names_only);
        out.push_str(",\"values\":[");
        let mut first = true;
        for (t, v) in times.iter().zip(&s.values) {
            if let Some(v) = v {
                if !std::mem::take(&mut first) {
                    out.push(',');
                }
                sample(&mut out, *t, *v);
            }
        }
        out.push_str("]}");
    }
    out.push(']');
    tail(out, cost)
}

/// Entries by label set, streams in the order of their label text. `categorize`: stream labels only name the stream, the
/// others come with each entry.
pub fn streams(entries: &[LogEntry], categorize: bool, cost: &Cost) -> String {
    let shown = |l: &&Label| !categorize || l.kind == Kind::Stream;
    let mut index: HashMap<Vec<(&str, &str)>, Vec<usize>> = HashMap::new();
    for (i, e) in entries.iter().enumerate() {
        let key: Vec<(&str, &str)> = e.labels.iter().filter(shown).map(|l| (&*l.name, &*l.value)).collect();
        index.entry(key).or_default().push(i);
    }
    let mut all: Vec<_> = index.into_iter().collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out = head("streams");
    if categorize {
        out.push_str("\"encodingFlags\":[\"categorize-labels\"],");
    }
    out.push_str("\"result\":[");
    for (i, (key, members)) in all.iter().enumerate() {
        out.push_str(if i > 0 { ",{\"stream\":" } else { "{\"stream\":" });
        map(&mut out, key.iter().copied());
        out.push_str(",\"values\":[");
        for (j, e) in members.iter().map(|m| &entries[*m]).enumerate() {
            let _ = write!(out, "{}[\"{}\",", if j > 0 { "," } else { "" }, e.ts);
            string(&mut out, &e.line);
            if categorize {
                out.push_str(",{");
                let mut first = true;
                for (name, kind) in [("structuredMetadata", Kind::Metadata), ("parsed", Kind::Parsed)] {
                    if e.labels.iter().any(|l| l.kind == kind) {
                        if !std::mem::take(&mut first) {
                            out.push(',');
                        }
                        let _ = write!(out, "\"{name}\":");
                        map(&mut out, e.labels.iter().filter(|l| l.kind == kind).map(|l| (&*l.name, &*l.value)));
                    }
                }
                out.push('}');
            }
            out.push(']');
        }
        out.push_str("]}");
    }
    out.push(']');
    tail(out, cost)
}

/// `{"status":"success","data":[...]}` of strings. Loki leaves an empty list out, clients take either.
pub fn strings<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let mut out = String::from("{\"status\":\"success\",\"data\":[");
    for (i, v) in values.enumerate() {
        if i > 0 {
            out.push(',');
        }
        string(&mut out, v);
    }
    out.push_str("]}");
    out
}

pub fn label_sets<'a>(sets: impl Iterator<Item = &'a Labels>) -> String {
    let mut out = String::from("{\"status\":\"success\",\"data\":[");
    for (i, set) in sets.enumerate() {
        if i > 0 {
            out.push(',');
        }
        labels(&mut out, set);
    }
    out.push_str("]}");
    out
}

fn stats(out: &mut String, cost: &Cost) {
    let sum =
        |f: fn(&ScanStats) -> &AtomicU64| -> u64 { cost.scans.iter().map(|s| f(s).load(Ordering::Relaxed)).sum() };
    let (rows, bytes) = (sum(|s| &s.rows_scanned), sum(|s| &s.bytes_scanned));
    let (kept, read) = (sum(|s| &s.rows_returned), sum(|s| &s.bytes_read));
    let (parts, pruned) = (sum(|s| &s.parts), sum(|s| &s.parts_pruned));
    let seconds = cost.elapsed.as_secs_f64();
    let rate = |n: u64| if seconds > 0.0 { (n as f64 / seconds) as u64 } else { 0 };
    let store = format!(
        "{{\"totalChunksRef\":{},\"totalChunksDownloaded\":{parts},\"chunksDownloadTime\":0,\"chunk\":{{\"headChunkBytes\":0,\"headChunkLines\":0,\"decompressedBytes\":{bytes},\"decompressedLines\":{rows},\"compressedBytes\":{read},\"totalDuplicates\":0}}}}",
        parts + pruned
    );
    let _ = write!(
        out,
        "{{\"summary\":{{\"bytesProcessedPerSecond\":{},\"linesProcessedPerSecond\":{},\"totalBytesProcessed\":{bytes},\"totalLinesProcessed\":{rows},\"execTime\":{seconds:.6},\"queueTime\":0,\"subqueries\":0,\"totalEntriesReturned\":{},\"splits\":0,\"shards\":0,\"totalPostFilterLines\":{kept},\"totalStructuredMetadataBytesProcessed\":0}},\"querier\":{{\"store\":{store}}},\"ingester\":{{\"totalReached\":0,\"totalChunksMatched\":0,\"totalBatches\":0,\"totalLinesSent\":0,\"store\":{{\"totalChunksRef\":0,\"totalChunksDownloaded\":0,\"chunksDownloadTime\":0,\"chunk\":{{\"headChunkBytes\":0,\"headChunkLines\":0,\"decompressedBytes\":0,\"decompressedLines\":0,\"compressedBytes\":0,\"totalDuplicates\":0}}}}}},\"cache\":{{}},\"index\":{{}}}}",
        rate(bytes),
        rate(rows),
        cost.returned
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_html_escaped_and_read_back() {
        for s in ["<b>&\"\\\n\t\u{1}\u{2028}é", "", "plain"] {
            let mut out = String::new();
            string(&mut out, s);
            assert_eq!(serde_json::from_str::<String>(&out).unwrap(), s);
            assert!(!out.contains('<') && !out.contains('&'));
        }
    }

    #[test]
    fn times_have_no_needless_decimals() {
        let mut out = String::new();
        sample(&mut out, 1_500_000_000, 0.1);
        sample(&mut out, 2_000_000_000, f64::INFINITY);
        assert_eq!(out, "[1.5,\"0.1\"][2,\"+Inf\"]");
    }
}
