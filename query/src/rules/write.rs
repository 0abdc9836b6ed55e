//! What rules give, on its way into the store.

use std::sync::Arc;

use storage::{
    Append, AppendError, Refused, Store,
    model::{Labels, MetricBatchBuilder, Table, TenantId, batch::SeriesMeta},
};

use crate::promql::{Point, STALE_NAN_BITS, notation};

/// One point of one series.
#[derive(Clone, Debug, PartialEq)]
pub struct OutSample {
    /// With `__name__`.
    pub labels: Arc<Labels>,
    pub ts_ms: i64,
    pub point: Point,
}

impl OutSample {
    /// The end of a series.
    pub fn stale(labels: Arc<Labels>, ts_ms: i64) -> Self {
        OutSample { labels, ts_ms, point: Point::Float(f64::from_bits(STALE_NAN_BITS)) }
    }
}

/// Stores all of them, or none; but for new series beyond the tenant's limits, which are told. Durable and visible on
/// return.
pub async fn append(
    store: &Store,
    tenant: &TenantId,
    samples: &[OutSample],
) -> Result<Option<Arc<Refused>>, AppendError> {
    if samples.is_empty() {
        return Ok(None);
    }
    let mut builder = MetricBatchBuilder::new();
    for s in samples {
        let id = builder.series(&s.labels, SeriesMeta::default());
        match &s.point {
            Point::Float(v) => builder.sample(id, s.ts_ms, None, *v),
            Point::Histogram(h) => builder.histogram(id, s.ts_ms, None, &notation::row(h)),
            Point::None => {}
        }
    }
    let batch = builder.finish();
    let rows = vec![
        (Table::MetricSeries, batch.series),
        (Table::MetricSamples, batch.samples),
        (Table::MetricHistograms, batch.histograms),
    ];
    let rows = rows.into_iter().filter(|(_, b)| b.num_rows() > 0).collect();
    let append = Append { tenant: tenant.clone(), rows, sources: Vec::new(), batch_id: None };
    store.append(append).await.map(|a| a.refused)
}
