//! `filter`: keeps the rows whose condition holds. Of metrics it keeps or drops whole series with their points.

use std::collections::HashSet;

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::Int64Type,
};
use serde::Deserialize;
use storage::model::MetricBatch;

use crate::{
    component::{Data, Signals, Transform, TransformError},
    condition::Condition,
    error::ConfigError,
    metrics::{Counters, DropReason},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub inputs: Vec<String>,
    /// See [`crate::condition`]. Signals without its fields pass.
    pub condition: String,
}

pub struct Filter {
    condition: Condition,
}

impl Filter {
    pub fn new(config: &Config, path: &str) -> Result<Filter, Vec<ConfigError>> {
        let condition = Condition::parse(&config.condition).map_err(|e| {
            let mut error = ConfigError::new(format!("{path}.condition"), e.to_string());
            error.nearest = e.nearest;
            vec![error]
        })?;
        Ok(Filter { condition })
    }

    fn keep(&self, rows: RecordBatch) -> Result<RecordBatch, TransformError> {
        let mask = self.condition.mask(&rows);
        if mask.iter().all(|k| *k) {
            return Ok(rows);
        }
        Ok(filter_record_batch(&rows, &BooleanArray::from(mask))?)
    }

    fn keep_series(&self, m: MetricBatch) -> Result<MetricBatch, TransformError> {
        let series = self.keep(m.series.clone())?;
        if series.num_rows() == m.series.num_rows() {
            return Ok(m);
        }
        let kept: HashSet<i64> = series.column(0).as_primitive::<Int64Type>().values().iter().copied().collect();
        let points = |rows: &RecordBatch| -> Result<RecordBatch, TransformError> {
            let ids = rows.column(0).as_primitive::<Int64Type>().values();
            let mask: Vec<bool> = ids.iter().map(|id| kept.contains(id)).collect();
            Ok(filter_record_batch(rows, &BooleanArray::from(mask))?)
        };
        Ok(MetricBatch {
            samples: points(&m.samples)?,
            histograms: points(&m.histograms)?,
            exemplars: points(&m.exemplars)?,
            series,
        })
    }
}

impl Transform for Filter {
    fn signals(&self) -> Signals {
        self.condition.signals()
    }

    fn apply(&self, data: Data, counters: &Counters) -> Result<Data, TransformError> {
        let before = data.rows();
        let kept = match data {
            Data::Logs(rows) => Data::Logs(self.keep(rows)?),
            Data::Spans(rows) => Data::Spans(self.keep(rows)?),
            Data::Metrics(m) => Data::Metrics(self.keep_series(m)?),
        };
        counters.dropped(DropReason::Filtered, (before - kept.rows()) as u64);
        Ok(kept)
    }
}
