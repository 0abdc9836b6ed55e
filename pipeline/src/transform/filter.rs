//! `filter`: keeps the rows whose condition holds. Of metrics it keeps or drops whole series with their points.

use arrow::array::RecordBatch;
use serde::Deserialize;

use crate::{
    component::{Data, Signals, Transform, TransformError},
    condition::Condition,
    error::ConfigError,
    metrics::{Counters, DropReason},
    transform::series,
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
        series::keep_rows(rows, mask)
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
            Data::Metrics(m) => {
                let mask = self.condition.mask(&m.series);
                Data::Metrics(series::keep_series(m, &mask)?)
            }
        };
        counters.dropped(DropReason::Filtered, (before - kept.rows()) as u64);
        Ok(kept)
    }
}
