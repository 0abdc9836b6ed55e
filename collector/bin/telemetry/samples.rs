//! Our own `/metrics` text as samples of one moment, under the same names.

use std::collections::HashMap;

use storage::model::{Labels, MetricBatch, MetricBatchBuilder, batch::SeriesMeta};

/// `text` is what we render ourselves: Prometheus text 0.0.4 without timestamps. Lines that are not understood are left
/// out; there are none (see the test of the real page).
pub fn batch(text: &str, job: &str, instance: &str, ts_ms: i64) -> MetricBatch {
    let mut builder = MetricBatchBuilder::new();
    let base = Labels::from_pairs([("job", job), ("instance", instance)]);
    let (mut helps, mut kinds) = (HashMap::new(), HashMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helps.extend(rest.split_once(' '));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            kinds.extend(rest.split_once(' '));
        } else if let Some((name, own, value)) = sample(line) {
            let mut labels = base.clone();
            labels.set("__name__", name);
            for (n, v) in &own {
                labels.set(n, v.as_str());
            }
            // The parts of a histogram carry its name with an ending.
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|end| name.strip_suffix(end))
                .find(|f| kinds.contains_key(f))
                .unwrap_or(name);
            let meta = SeriesMeta {
                metric_type: Some(kinds.get(family).copied().unwrap_or("unknown")),
                unit: None,
                help: helps.get(family).copied(),
                origin: None,
            };
            let id = builder.series(&labels, meta);
            builder.sample(id, ts_ms, None, value);
        }
    }
    builder.finish()
}

/// Name, labels and value.
type Sample<'a> = (&'a str, Vec<(&'a str, String)>, f64);

/// `name{label="value",...} value`.
fn sample(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((label, value));
            rest = after;
        }
    }
    Some((name, labels, rest.trim().parse().ok()?))
}

/// The value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                c => out.push(c),
            },
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray as _;

    use super::*;

    #[test]
    fn every_line_becomes_a_sample_of_its_name() {
        let text = "# HELP a_total What a is.\n# TYPE a_total counter\na_total{l=\"q\\\"\\\\\\n,}\",m=\"\"} 1\na_total 2.5\n\
                    # TYPE h histogram\nh_bucket{le=\"+Inf\"} 3\nh_sum 1e-3\nh_count 3\n";
        let batch = batch(text, "sightline", "here", 1_000);
        assert_eq!((batch.series.num_rows(), batch.samples.num_rows()), (5, 5));
        let labels = batch.series.column_by_name("labels").unwrap().as_string::<i32>();
        let all: Vec<&str> = labels.iter().flatten().collect();
        assert!(all.iter().any(|l| l.contains("q\\\"\\\\\\n,}")), "{all:?}");
        assert!(all.iter().all(|l| l.contains("\"job\":\"sightline\"")), "{all:?}");
    }

    #[test]
    fn what_is_no_sample_is_left_out() {
        assert_eq!(sample("# a"), None);
        assert_eq!(sample("a{b=\"c} 1"), None);
        assert_eq!(sample("a"), None);
        assert_eq!(sample("a +Inf").unwrap().2, f64::INFINITY);
    }
}
