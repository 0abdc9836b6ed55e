//! What a target exposes becomes rows: pure, by script.

use std::{path::Path, sync::Arc};

use arrow::{
    array::{Array as _, AsArray as _},
    datatypes::{Float64Type, Int64Type},
};
use pipeline::codec::prom_text::Format;
use storage::model::{Labels, MetricBatch};

use super::{
    config::{File, Span},
    job::{self, Checked, Job},
    series::{Memory, Report, STALE, Taken},
    target::{Populated, Target, offset, populate, with_defaults},
};

pub(super) fn checked(configs: &str) -> Checked {
    checked_under("", configs)
}

/// `global`: keys of that section.
fn checked_under(global: &str, configs: &str) -> Checked {
    let text = format!("{{\"global\":{{{global}}},\"scrape_configs\":[{configs}]}}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let file: File = serde_json::from_value(value).unwrap();
    job::check(&file, Path::new("/etc/prometheus"))
}

/// A job of `config`'s keys beside its name.
pub(super) fn a_job(config: &str) -> Arc<Job> {
    let comma = if config.is_empty() { "" } else { "," };
    let found = checked(&format!("{{\"job_name\":\"j\"{comma}{config}}}"));
    assert!(found.errors.is_empty() && found.unsupported.is_empty(), "{:?} {:?}", found.errors, found.unsupported);
    found.jobs[0].clone()
}

fn target_of(job: &Job, labels: &[(&str, &str)]) -> Populated {
    populate(job, &with_defaults(job, Labels::from_pairs(labels.iter().copied())))
}

fn a_target(job: &Job, labels: &[(&str, &str)]) -> Target {
    match target_of(job, labels) {
        Populated::Target(target) => *target,
        Populated::Dropped => panic!("dropped"),
        Populated::Invalid(e) => panic!("{e}"),
    }
}

/// Rows as `labels @ts value`, stale markers as `stale`, sorted.
pub(super) fn rows(batches: &[MetricBatch]) -> Vec<String> {
    let mut out = Vec::new();
    for batch in batches {
        let ids = batch.series.column_by_name("series_id").unwrap().as_primitive::<Int64Type>();
        let labels = batch.series.column_by_name("labels").unwrap().as_string::<i32>();
        let of = |id: i64| {
            let at = (0..ids.len()).find(|i| ids.value(*i) == id).unwrap();
            let labels = Labels::from_json(labels.value(at)).unwrap();
            let rest: Vec<String> =
                labels.iter().filter(|(n, _)| *n != "__name__").map(|(n, v)| format!("{n}={v}")).collect();
            format!("{}{{{}}}", labels.get("__name__").unwrap(), rest.join(","))
        };
        for (points, column) in [(&batch.samples, "value"), (&batch.histograms, "sum")] {
            let id = points.column_by_name("series_id").unwrap().as_primitive::<Int64Type>();
            let ts = points.column_by_name("ts_ms").unwrap().as_primitive::<Int64Type>();
            let value = points.column_by_name(column).unwrap().as_primitive::<Float64Type>();
            for i in 0..points.num_rows() {
                let v = value.value(i);
                let shown = if v.to_bits() == STALE.to_bits() { "stale".to_owned() } else { v.to_string() };
                out.push(format!("{} @{} {shown}", of(id.value(i)), ts.value(i)));
            }
        }
    }
    out.sort();
    out
}

struct Scripted {
    memory: Memory,
    target: Arc<Target>,
}

impl Scripted {
    fn new(config: &str) -> Scripted {
        let job = a_job(config);
        let target = Arc::new(a_target(&job, &[("__address__", "h:1")]));
        Scripted { memory: Memory::new(job, target.clone()), target }
    }

    fn take(&mut self, body: &str, ts: i64) -> (Taken, Result<(), String>) {
        let (taken, read) = self.memory.take(body.as_bytes(), Format::Text, ts);
        (taken, read.map_err(|e| e.to_string()))
    }

    #[track_caller]
    fn gives(&mut self, body: &str, ts: i64, want: &[&str]) {
        let (taken, read) = self.take(body, ts);
        read.unwrap();
        assert_eq!(rows(&taken.finish()), want);
    }

    #[track_caller]
    fn refuses(&mut self, body: &str, ts: i64, want: &str) -> Taken {
        let (taken, read) = self.take(body, ts);
        assert_eq!(read.unwrap_err(), want);
        taken
    }
}

const J: &str = "instance=h:1,job=j";

#[test]
fn a_series_that_is_gone_ends_and_one_with_its_own_time_does_not() {
    let mut s = Scripted::new("");
    s.gives(
        "a 1\nb{x=\"y\"} 2\nc 3 500\n",
        1000,
        &[&format!("a{{{J}}} @1000 1"), &format!("b{{{J},x=y}} @1000 2"), &format!("c{{{J}}} @500 3")],
    );
    s.gives("a 2\n", 2000, &[&format!("a{{{J}}} @2000 2"), &format!("b{{{J},x=y}} @2000 stale")]);
    s.gives("a 3\n", 3000, &[&format!("a{{{J}}} @3000 3")]);
    let mut s = Scripted::new(r#""track_timestamps_staleness":true"#);
    s.gives("c 3 500\n", 1000, &[&format!("c{{{J}}} @500 3")]);
    s.gives("", 2000, &[&format!("c{{{J}}} @2000 stale")]);
    let mut s = Scripted::new(r#""honor_timestamps":false"#);
    s.gives("c 3 500\n", 1000, &[&format!("c{{{J}}} @1000 3")]);
    s.gives("", 2000, &[&format!("c{{{J}}} @2000 stale")]);
}

#[test]
fn a_scrape_with_an_error_anywhere_brings_nothing_and_ends_everything_once() {
    let mut s = Scripted::new("");
    s.gives("a 1\n", 1000, &[&format!("a{{{J}}} @1000 1")]);
    let mut taken = s.refuses("a 2\nb 3\nc\n", 2000, "line 3: expected a value after the series, got end of line");
    s.memory.nothing(&mut taken, 2000);
    s.memory.report(&mut taken, &Report { up: false, seconds: 0.5, body_bytes: 0.0 }, 2000);
    assert_eq!(
        rows(&taken.finish()),
        [
            format!("a{{{J}}} @2000 stale"),
            format!("scrape_duration_seconds{{{J}}} @2000 0.5"),
            format!("scrape_samples_post_metric_relabeling{{{J}}} @2000 2"),
            format!("scrape_samples_scraped{{{J}}} @2000 2"),
            format!("scrape_series_added{{{J}}} @2000 1"),
            format!("up{{{J}}} @2000 0"),
        ]
    );
    let mut taken = Taken::default();
    s.memory.nothing(&mut taken, 3000);
    assert!(taken.finish().is_empty(), "ended before");
    // It comes back as known, and ends when the target is gone, with our own series.
    let (taken, _) = s.take("a 4\n", 4000);
    assert_eq!(taken.added, 0);
    let gone = rows(&s.memory.gone(5000).finish());
    assert_eq!(gone.len(), 6);
    assert!(gone.iter().all(|r| r.ends_with("@5000 stale")), "{gone:?}");
}

#[test]
fn labels_of_the_target_win_unless_those_exposed_are_honored() {
    let body = "a{job=\"x\",exported_job=\"y\",instance=\"\"} 1\n";
    Scripted::new("").gives(body, 1, &["a{exported_exported_job=x,exported_job=y,instance=h:1,job=j} @1 1"]);
    // An empty one that is exposed takes the target's away.
    Scripted::new(r#""honor_labels":true"#).gives(body, 1, &["a{exported_job=y,job=x} @1 1"]);
}

#[test]
fn metric_relabelling_drops_renames_and_counts() {
    let rules = r#""metric_relabel_configs":[{"source_labels":["__name__"],"regex":"b.*","action":"drop"},
        {"source_labels":["__name__"],"regex":"c(.)","target_label":"__name__","replacement":"d"}]"#;
    let mut s = Scripted::new(rules);
    let (taken, read) = s.take("a 1\nb1 2\nc1 3\nc2 4\n", 1000);
    read.unwrap();
    assert_eq!((taken.scraped, taken.kept, taken.added, taken.duplicates), (4, 3, 3, 1));
    assert_eq!(rows(&taken.finish()), [format!("a{{{J}}} @1000 1"), format!("d{{{J}}} @1000 3")]);
    // One of two lines of a series is enough to keep it.
    s.gives("a 1\nc2 5\n", 2000, &[&format!("a{{{J}}} @2000 1"), &format!("d{{{J}}} @2000 5")]);
    let mut s = Scripted::new(r#""metric_relabel_configs":[{"regex":"__name__","action":"labeldrop"}]"#);
    s.refuses("a 1\n", 1, r#"missing metric name (__name__ label) in {instance="h:1", job="j"}"#);
}

#[test]
fn a_repeated_line_counts_once_and_a_label_twice_is_an_error() {
    let mut s = Scripted::new("");
    let (taken, read) = s.take("a 1\na 2\na 3 7\n", 1000);
    read.unwrap();
    assert_eq!((taken.scraped, taken.duplicates), (3, 1));
    assert_eq!(rows(&taken.finish()), [format!("a{{{J}}} @1000 1"), format!("a{{{J}}} @7 3")]);
    s.refuses("a{b=\"1\",b=\"2\"} 1\n", 2000, r#"label name "b" of "a" is not unique"#);
    // Attempts that failed do not make the next one's series repeated.
    s.refuses("x 1\ny", 3000, "line 2: expected a value after the series, got end of line");
    let (taken, _) = s.take("x 1\n", 4000);
    assert_eq!((taken.scraped, taken.duplicates), (1, 0));
}

#[test]
fn every_limit_refuses_the_scrape_by_its_name() {
    let mut s = Scripted::new(
        r#""sample_limit":2,"metric_relabel_configs":[{"source_labels":["__name__"],"regex":"z","action":"drop"}]"#,
    );
    s.gives("a 1\nz 1\nb 1\n", 1, &[&format!("a{{{J}}} @1 1"), &format!("b{{{J}}} @1 1")]);
    let taken = s.refuses("a 1\nb 1\nc 1\nd 1\n", 2, "sample limit exceeded: more than 2 samples after relabelling");
    assert_eq!((taken.scraped, taken.kept), (4, 4), "all are counted");
    Scripted::new(r#""label_limit":3"#).refuses(
        "a{b=\"c\"} 1\n",
        1,
        "label_limit exceeded (metric: a, number of labels: 4, limit: 3)",
    );
    Scripted::new(r#""label_name_length_limit":8"#).refuses(
        "a{b23456789=\"c\"} 1\n",
        1,
        "label_name_length_limit exceeded (metric: a, label name: b23456789, length: 9, limit: 8)",
    );
    Scripted::new(r#""label_value_length_limit":4"#).refuses(
        "a{b=\"12345\"} 1\n",
        1,
        "label_value_length_limit exceeded (metric: a, label value: 12345, length: 5, limit: 4)",
    );
    Scripted::new(r#""metric_name_validation_scheme":"legacy""#).refuses(
        "{\"a.b\"} 1\n",
        1,
        r#"invalid metric name or label names: {__name__="a.b", instance="h:1", job="j"}"#,
    );
}

#[test]
fn types_and_helps_go_with_the_series_and_are_remembered_by_family() {
    let mut s = Scripted::new("");
    let body =
        "# HELP h_s How long\n# TYPE h_s histogram\nh_s_bucket{le=\"+Inf\"} 1\nh_s_sum 1\nh_s_count 1\nother 1\n";
    let (taken, _) = s.take(body, 1000);
    let batch = &taken.finish()[0];
    let metric = batch.series.column_by_name("metric").unwrap();
    let column = |name: &str| {
        let column =
            arrow::compute::cast(batch.series.column_by_name(name).unwrap(), &arrow::datatypes::DataType::Utf8);
        column.unwrap().as_string::<i32>().iter().map(|v| v.unwrap_or("-").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(metric.len(), 4);
    assert_eq!(column("type"), ["histogram", "histogram", "histogram", "-"]);
    assert_eq!(column("help"), ["How long", "How long", "How long", "-"]);
    let families = s.target.families.lock();
    assert_eq!(families.keys().collect::<Vec<_>>(), ["h_s"]);
    assert_eq!(families["h_s"].metric_type, "histogram");
}

#[test]
fn exemplars_are_stored_once_with_their_trace() {
    let mut s = Scripted::new("");
    let body = |trace: &str| format!("# TYPE a counter\na_total 1 # {{trace_id=\"{trace}\",x=\"y\"}} 0.5\n# EOF\n");
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let mut take = |body: &str, ts| {
        let (taken, read) = s.memory.take(body.as_bytes(), Format::OpenMetrics, ts);
        read.unwrap();
        taken
    };
    let first = take(&body(trace), 1000).finish();
    let exemplars = &first[0].exemplars;
    assert_eq!(exemplars.num_rows(), 1);
    let got = exemplars.column_by_name("trace_id").unwrap().as_binary::<i32>().value(0).to_vec();
    assert_eq!(hex::encode(got), trace);
    assert_eq!(exemplars.column_by_name("labels").unwrap().as_string::<i32>().value(0), r#"{"x":"y"}"#);
    assert_eq!(take(&body(trace), 2000).finish()[0].exemplars.num_rows(), 0, "the same one");
    assert_eq!(take(&body("other"), 3000).finish()[0].exemplars.num_rows(), 1);
    let long = take(&body(&"x".repeat(129)), 4000);
    assert_eq!(long.exemplars_refused, 1);
}

#[test]
fn a_native_histogram_ends_as_one() {
    let mut s = Scripted::new(r#""scrape_native_histograms":true"#);
    // `h` with one observation at schema 3.
    let mut h = vec![0x08, 1, 0x11];
    h.extend(1.5f64.to_le_bytes());
    h.extend([0x28, 6, 0x62, 2, 0x10, 1, 0x6a, 1, 2]);
    let metric = [vec![0x3a, h.len() as u8], h].concat();
    let family = [vec![0x0a, 1, b'h', 0x18, 4, 0x22, metric.len() as u8], metric].concat();
    let body = [vec![family.len() as u8], family].concat();
    let (taken, read) = s.memory.take(&body, Format::Protobuf, 1000);
    read.unwrap();
    let first = taken.finish();
    assert_eq!((first[0].histograms.num_rows(), first[0].samples.num_rows()), (1, 0));
    let mut taken = Taken::default();
    s.memory.nothing(&mut taken, 2000);
    let end = taken.finish();
    assert_eq!((end[0].histograms.num_rows(), rows(&end)), (1, vec![format!("h{{{J}}} @2000 stale")]));
}

const H: &str =
    "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"2\"} 2\nh_bucket{le=\"+Inf\"} 3\nh_sum 4\nh_count 3\n";

#[test]
fn a_classic_histogram_is_scraped_as_one_with_custom_buckets() {
    let convert = r#""convert_classic_histograms_to_nhcb":true"#;
    let mut s = Scripted::new(&format!(
        r#"{convert},"sample_limit":1,"metric_relabel_configs":[{{"source_labels":["__name__"],"regex":"h","target_label":"z","replacement":"y"}},
        {{"regex":"le","action":"labeldrop"}}]"#
    ));
    let (taken, read) = s.take(H, 1000);
    read.unwrap();
    assert_eq!((taken.scraped, taken.kept, taken.added, taken.not_converted), (1, 1, 1, 0));
    let first = taken.finish();
    assert_eq!((first[0].histograms.num_rows(), first[0].samples.num_rows()), (1, 0));
    assert_eq!(rows(&first), [format!("h{{{J},z=y}} @1000 4")]);
    // It goes, as what it was.
    let (taken, _) = s.take("", 2000);
    let end = taken.finish();
    assert_eq!((end[0].histograms.num_rows(), rows(&end)), (1, vec![format!("h{{{J},z=y}} @2000 stale")]));
    // It turns up broken: its classic series then, which end when it is right again.
    let mut s = Scripted::new(convert);
    let h = format!("h{{{J}}}");
    s.gives(H, 1000, &[&format!("{h} @1000 4")]);
    let broken = H.replace("h_count 3", "h_count 9");
    let (taken, _) = s.take(&broken, 2000);
    assert_eq!((taken.not_converted, taken.kept, taken.stale), (1, 5, 1));
    let (taken, _) = s.take(H, 3000);
    assert_eq!((taken.not_converted, taken.kept, taken.stale), (0, 1, 5));
    let both = Scripted::new(&format!(r#"{convert},"always_scrape_classic_histograms":true"#)).take(H, 1000).0;
    assert_eq!((both.scraped, both.kept), (6, 6));
}

#[test]
fn native_histograms_are_held_to_their_limits() {
    let limited = |more: &str| Scripted::new(&format!(r#""convert_classic_histograms_to_nhcb":true{more}"#));
    let why = "histogram bucket limit exceeded: h has too many buckets";
    limited(r#","native_histogram_bucket_limit":3"#).take(H, 1).1.unwrap();
    let taken = limited(r#","native_histogram_bucket_limit":2"#).refuses(H, 1, why);
    assert_eq!((taken.scraped, taken.kept, taken.added), (1, 1, 0));
    // Exponential ones are made coarser: indexes 1 and 2 of schema 3 are 1 of schema 2.
    let mut h = vec![0x08, 2, 0x11];
    h.extend(1.5f64.to_le_bytes());
    h.extend([0x28, 6, 0x62, 4, 0x08, 2, 0x10, 2, 0x6a, 2, 2, 0]);
    let metric = [vec![0x3a, h.len() as u8], h].concat();
    let family = [vec![0x0a, 1, b'h', 0x18, 4, 0x22, metric.len() as u8], metric].concat();
    let body = [vec![family.len() as u8], family].concat();
    for (limit, schema) in [
        (r#""native_histogram_bucket_limit":2"#, 3),
        (r#""native_histogram_bucket_limit":1"#, 2),
        (r#""native_histogram_min_bucket_factor":1.1"#, 2),
        (r#""native_histogram_min_bucket_factor":4"#, -1),
    ] {
        let mut s = Scripted::new(&format!(r#""scrape_native_histograms":true,{limit}"#));
        let (taken, read) = s.memory.take(&body, Format::Protobuf, 1000);
        read.unwrap();
        let found = taken.finish();
        let schemas = arrow::compute::cast(
            found[0].histograms.column_by_name("schema").unwrap(),
            &arrow::datatypes::DataType::Int64,
        );
        assert_eq!(schemas.unwrap().as_primitive::<Int64Type>().value(0), schema, "{limit}");
    }
}

#[test]
fn extra_series_of_a_scrape_are_there_on_demand() {
    let mut s = Scripted::new(r#""extra_scrape_metrics":true,"sample_limit":7"#);
    let mut taken = Taken::default();
    s.memory.report(&mut taken, &Report { up: true, seconds: 0.5, body_bytes: 99.0 }, 1);
    let rows = rows(&taken.finish());
    assert_eq!(rows.len(), 8);
    for want in ["scrape_body_size_bytes", "scrape_sample_limit", "scrape_timeout_seconds"]
        .into_iter()
        .zip(["99", "7", "10"])
        .map(|(name, value)| format!("{name}{{{J}}} @1 {value}"))
    {
        assert!(rows.contains(&want), "{want} {rows:?}");
    }
}

#[test]
fn a_target_follows_from_its_labels_as_in_prometheus() {
    let job = a_job(
        r#""params":{"module":["http","x"],"a b":["1"]},"metrics_path":"/probe","scrape_interval":"30s",
        "relabel_configs":[{"source_labels":["__address__"],"target_label":"__param_target"},
            {"source_labels":["__param_target"],"target_label":"instance"},
            {"target_label":"__address__","replacement":"blackbox:9115"},
            {"source_labels":["__meta_zone"],"target_label":"zone"},
            {"source_labels":["zone"],"regex":"skip","action":"drop"}]"#,
    );
    let target =
        a_target(&job, &[("__address__", "http://x.org/"), ("__meta_zone", "eu"), ("__scrape_timeout__", "3s")]);
    assert_eq!(target.url, "http://blackbox:9115/probe?a+b=1&module=http&module=x&target=http%3A%2F%2Fx.org%2F");
    assert_eq!(target.labels, Labels::from_pairs([("instance", "http://x.org/"), ("job", "j"), ("zone", "eu")]));
    assert_eq!((target.interval.as_secs(), target.timeout.as_secs()), (30, 3));
    let found = target.discovered.lock().clone();
    assert_eq!(found.get("__scrape_interval__"), Some("30s"));
    assert_eq!((found.get("__scheme__"), found.get("__param_module")), (Some("http"), Some("http")));
    assert!(matches!(target_of(&job, &[("__address__", "a"), ("__meta_zone", "skip")]), Populated::Dropped));
    let plain = a_job("");
    for (labels, want) in [
        (&[][..], "the target has no address"),
        (&[("__address__", "a/b")], "\"a/b\" is not a valid hostname"),
        (&[("__address__", "a"), ("__scrape_timeout__", "2m")], "scrape timeout cannot be greater"),
        (&[("__address__", "a"), ("__scrape_interval__", "x")], "__scrape_interval__: invalid duration"),
    ] {
        let Populated::Invalid(e) = target_of(&plain, labels) else { panic!("{labels:?}") };
        assert!(e.starts_with(want), "{e}");
    }
}

#[test]
fn targets_have_their_own_place_in_the_interval_whenever_we_start() {
    let interval = std::time::Duration::from_secs(15);
    let place = |id, now: u64| (now + offset(id, 7, interval, now).as_nanos() as u64) % interval.as_nanos() as u64;
    for id in [1u64, 1 << 40, u64::MAX] {
        for now in [0u64, 123_456_789, 14_999_999_999, 1_700_000_000_000_000_001] {
            assert_eq!(place(id, now), place(id, 0));
            assert!(offset(id, 7, interval, now) <= interval);
        }
    }
}

#[test]
fn durations_are_written_as_prometheus_writes_them() {
    for (text, want) in
        [("90s", "1m30s"), ("1500ms", "1s500ms"), ("0", "0s"), ("24h", "1d"), ("25h", "25h"), ("14d", "2w")]
    {
        assert_eq!(Span(super::config::parse_span(text).unwrap()).to_string(), want);
    }
}

/// What a job came to of each key that may be global too.
fn heritage(job: &Job) -> Vec<String> {
    let l = &job.limits;
    vec![
        format!("{:?} {:?}", job.interval, job.timeout),
        format!("{:?} {:?} {:?} {:?}", l.samples, l.labels, l.name_bytes, l.value_bytes),
        format!("{:?} {} {}", job.target_limit, job.keep_dropped, job.body_bytes_max),
        format!("{:?} {:?} {}", job.options, job.protocols, job.extra_metrics),
        format!("{} {}", job.legacy_names, job.escaping),
    ]
}

#[test]
fn a_job_inherits_what_it_does_not_say_and_zero_says_nothing() {
    let all = r#""scrape_interval":"20s","scrape_timeout":"5s","sample_limit":1,"label_limit":2,"label_name_length_limit":3,
        "label_value_length_limit":4,"target_limit":5,"keep_dropped_targets":6,"body_size_limit":"7B",
        "scrape_native_histograms":true,"always_scrape_classic_histograms":true,"convert_classic_histograms_to_nhcb":true,
        "scrape_protocols":["PrometheusText0.0.4"],"extra_scrape_metrics":true,
        "metric_name_validation_scheme":"legacy","metric_name_escaping_scheme":"values""#;
    let want = [
        "20s 5s",
        "Some(1) Some(2) Some(3) Some(4)",
        "Some(5) 6 7",
        "Options { native: true, classic_too: true, custom_buckets: true } [Text004] true",
        "true values",
    ];
    let none = r#""scrape_interval":"0s","scrape_timeout":"0s","sample_limit":0,"label_limit":0,"label_name_length_limit":0,
        "label_value_length_limit":0,"target_limit":0,"keep_dropped_targets":0,"body_size_limit":0"#;
    let other = r#""scrape_interval":"30s","scrape_timeout":"6s","sample_limit":10,"label_limit":20,"label_name_length_limit":30,
        "label_value_length_limit":40,"target_limit":50,"keep_dropped_targets":60,"body_size_limit":"70B",
        "scrape_native_histograms":false,"always_scrape_classic_histograms":false,"convert_classic_histograms_to_nhcb":false,
        "scrape_protocols":["PrometheusProto"],"extra_scrape_metrics":false,
        "metric_name_validation_scheme":"utf8","metric_name_escaping_scheme":"dots""#;
    let own = [
        "30s 6s",
        "Some(10) Some(20) Some(30) Some(40)",
        "Some(50) 60 70",
        "Options { native: false, classic_too: false, custom_buckets: false } [Protobuf] false",
        "false dots",
    ];
    for (global, job, want) in [(all, "", want), ("", all, want), (all, none, want), (all, other, own)] {
        let comma = if job.is_empty() { "" } else { "," };
        let found = checked_under(global, &format!(r#"{{"job_name":"j"{comma}{job}}}"#));
        assert!(found.errors.is_empty() && found.unsupported.is_empty(), "{:?}", found.errors);
        assert_eq!(heritage(&found.jobs[0]), want, "{global} {job}");
    }
    let plain = heritage(&a_job(""));
    assert_eq!((plain[0].as_str(), plain[4].as_str()), ("60s 10s", "false allow-utf-8"));
    assert!(plain[3].starts_with("Options { native: false, classic_too: false, custom_buckets: false } [Open"));
    let native = heritage(&a_job(r#""scrape_native_histograms":true,"scrape_classic_histograms":true"#));
    let want = "Options { native: true, classic_too: true, custom_buckets: false } [Protobuf, Open";
    assert!(native[3].starts_with(want), "{native:?}");
}

#[test]
fn what_prometheus_refuses_in_a_file_is_refused_here() {
    let paths = |global: &str, job: &str| {
        let found = checked_under(global, &format!(r#"{{"job_name":"j",{job}}}"#));
        found.errors.into_iter().map(|f| f.path.replace("scrape_configs[0].", "")).collect::<Vec<_>>().join(" ")
    };
    for (global, job, want) in [
        ("", r#""scrape_protocols":[]"#, "scrape_protocols"),
        ("", r#""scrape_protocols":["PrometheusProto","PrometheusProto"]"#, "scrape_protocols[1]"),
        ("", r#""fallback_scrape_protocol":"Text""#, "fallback_scrape_protocol"),
        ("", r#""scrape_timeout":"2m""#, "scrape_timeout"),
        (r#""scrape_timeout":"2m""#, r#""scrape_interval":"3m""#, "global.scrape_timeout"),
        ("", r#""metric_name_validation_scheme":"ascii""#, "metric_name_validation_scheme"),
        ("", r#""metric_name_escaping_scheme":"none""#, "metric_name_escaping_scheme"),
        (
            r#""metric_name_validation_scheme":"legacy""#,
            r#""metric_name_escaping_scheme":"allow-utf-8""#,
            "metric_name_escaping_scheme",
        ),
        ("", r#""http_headers":{"authorization":{"values":["x"]}}"#, "http_headers.authorization"),
        ("", r#""no_proxy":"x""#, "no_proxy"),
        ("", r#""proxy_from_environment":true,"proxy_url":"http://x""#, "proxy_url"),
        ("", r#""proxy_from_environment":true,"no_proxy":"x""#, "no_proxy"),
        (
            "",
            r#""relabel_configs":[{"action":"hashmod","source_labels":["a"],"target_label":"b"}]"#,
            "relabel_configs[0].modulus",
        ),
    ] {
        assert_eq!(paths(global, job), want, "{global} {job}");
    }
    let found = checked_under(
        r#""query_log_file":"q""#,
        r#"{"job_name":"j","proxy_url":"http://x","proxy_connect_header":{}}"#,
    );
    let named: Vec<String> = found.unsupported.into_iter().map(|f| f.path).collect();
    assert_eq!(named, ["global.query_log_file", "scrape_configs[0].proxy_connect_header"]);
}

#[test]
fn sizes_are_of_base_two_and_a_global_timeout_gives_way() {
    let job = a_job(r#""body_size_limit":"10MB","scrape_interval":"5s""#);
    assert_eq!((job.body_bytes_max, job.timeout.as_secs()), (10 << 20, 5));
    let found = checked(
        r#"{"job_name":"j","authorization":{"type":"basic"},"bearer_token":"x","tls_config":{"cert_file":"c"}}"#,
    );
    let messages: Vec<&str> = found.errors.iter().map(|f| f.message.as_str()).collect();
    assert_eq!(messages.len(), 3, "{messages:?}");
}
