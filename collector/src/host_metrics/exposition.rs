//! From families and values to a metric batch.

use storage::model::{Labels, MetricBatch, MetricBatchBuilder, batch::SeriesMeta};

/// A metric's name, its Prometheus type and what it is.
pub struct Family(pub &'static str, pub &'static str, pub &'static str);

pub const COUNTER: &str = "counter";
pub const GAUGE: &str = "gauge";

/// Collects the samples of one moment.
pub struct Exposition {
    builder: MetricBatchBuilder,
    /// On every series: `job`, `instance`, `node`.
    base: Labels,
    ts_ms: i64,
}

impl Exposition {
    pub fn new(job: &str, node: &str, ts_ms: i64) -> Self {
        let base = Labels::from_pairs([("job", job), ("instance", node), ("node", node)]);
        Exposition { builder: MetricBatchBuilder::new(), base, ts_ms }
    }

    pub fn ts_ms(&self) -> i64 {
        self.ts_ms
    }

    pub fn add(&mut self, family: &Family, labels: &[(&str, &str)], value: f64) {
        self.add_named(family.0, family.1, family.2, labels, value);
    }

    /// `None` adds nothing: what the kernel does not tell is not zero.
    pub fn add_some(&mut self, family: &Family, labels: &[(&str, &str)], value: Option<f64>) {
        if let Some(value) = value {
            self.add(family, labels, value);
        }
    }

    pub fn add_named(&mut self, name: &str, kind: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        let mut all = self.base.clone();
        all.set("__name__", name);
        for (n, v) in labels {
            all.set(n, *v);
        }
        let unit = ["seconds", "bytes"].into_iter().find(|u| {
            let stem = name.strip_suffix("_total").unwrap_or(name);
            stem.strip_suffix(u).is_some_and(|s| s.ends_with('_'))
        });
        let meta = SeriesMeta { metric_type: Some(kind), unit, help: Some(help), origin: None };
        let id = self.builder.series(&all, meta);
        self.builder.sample(id, self.ts_ms, None, value);
    }

    pub fn finish(mut self) -> MetricBatch {
        self.builder.finish()
    }
}
