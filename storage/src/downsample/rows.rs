//! Aggregates as rows of their tables.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch},
    datatypes::{Float64Type, Int64Type},
};

use super::{Aggregate, Resolution};
use crate::{ScanError, model::schema};

/// A batch of the resolution's table. `rows`: series and aggregate.
pub fn to_batch(resolution: Resolution, rows: &[(i64, Aggregate)]) -> Result<RecordBatch, ScanError> {
    let ints =
        |f: &dyn Fn(&(i64, Aggregate)) -> i64| -> ArrayRef { Arc::new(rows.iter().map(f).collect::<Int64Array>()) };
    let floats =
        |f: fn(&Aggregate) -> f64| -> ArrayRef { Arc::new(rows.iter().map(|r| f(&r.1)).collect::<Float64Array>()) };
    let columns: Vec<ArrayRef> = vec![
        ints(&|r| r.0),
        ints(&|r| r.1.end_ms.saturating_sub(resolution.millis())),
        ints(&|r| i64::try_from(r.1.count).unwrap_or(i64::MAX)),
        floats(|a| a.sum),
        floats(|a| a.min),
        floats(|a| a.max),
        ints(&|r| r.1.first_ms),
        floats(|a| a.first),
        ints(&|r| r.1.last_ms),
        floats(|a| a.last),
        floats(|a| a.lost),
        Arc::new(rows.iter().map(|r| r.1.stale_ms).collect::<Int64Array>()),
    ];
    Ok(RecordBatch::try_new(schema::stored(resolution.table()), columns)?)
}

/// The columns of a scanned batch of aggregates.
pub struct Columns<'b> {
    resolution: Resolution,
    pub series: &'b [i64],
    pub starts: &'b [i64],
    counts: &'b [i64],
    /// sum, min, max, first, last, lost.
    floats: [&'b [f64]; 6],
    first_ms: &'b [i64],
    last_ms: &'b [i64],
    stale_ms: &'b Int64Array,
}

impl<'b> Columns<'b> {
    /// `batch`: all columns of the resolution's table.
    pub fn new(resolution: Resolution, batch: &'b RecordBatch) -> Result<Self, ScanError> {
        let column = |name: &str| {
            let found = batch.column_by_name(name);
            found.ok_or_else(|| ScanError::Internal(format!("scan gave no column {name}")))
        };
        let ints = |name: &str| Ok::<_, ScanError>(&column(name)?.as_primitive::<Int64Type>().values()[..]);
        let floats = |name: &str| Ok::<_, ScanError>(&column(name)?.as_primitive::<Float64Type>().values()[..]);
        Ok(Columns {
            resolution,
            series: ints("series_id")?,
            starts: ints("ts_ms")?,
            counts: ints("count")?,
            floats: [
                floats("sum")?,
                floats("min")?,
                floats("max")?,
                floats("first")?,
                floats("last")?,
                floats("lost")?,
            ],
            first_ms: ints("first_ms")?,
            last_ms: ints("last_ms")?,
            stale_ms: column("stale_ms")?.as_primitive::<Int64Type>(),
        })
    }

    pub fn row(&self, i: usize) -> Aggregate {
        let [sum, min, max, first, last, lost] = self.floats.map(|c| c[i]);
        Aggregate {
            end_ms: self.starts[i].saturating_add(self.resolution.millis()),
            count: u64::try_from(self.counts[i]).unwrap_or(0),
            sum,
            min,
            max,
            first_ms: self.first_ms[i],
            first,
            last_ms: self.last_ms[i],
            last,
            lost,
            stale_ms: self.stale_ms.is_valid(i).then(|| self.stale_ms.value(i)),
        }
    }
}
