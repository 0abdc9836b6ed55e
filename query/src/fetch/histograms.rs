//! Native histograms of selected series, from the batches of a scan.
//!
//! **For** one histogram a sample, made where its columns lie and at once in the form that is computed with.
//! **Not for** other rows: floats come by shares of series, or with their start times by [`super::load`].

use std::sync::Arc;

use arrow::{
    array::{Array, AsArray, Int64Array, RecordBatch},
    buffer::NullBuffer,
    datatypes::{ArrowPrimitiveType, Float64Type, Int32Type, Int64Type},
};

use super::{Piece, Reading, Selected, SeriesData, column, pieces};
use crate::{
    error::QueryError,
    parallel,
    promql::{
        histogram::{Histogram, ResetHint, populated},
        is_stale,
    },
};

/// What is read of the table: extremes, and whether counts came as integers, change no answer.
pub(super) const COLUMNS: [&str; 14] = [
    "series_id",
    "ts_ms",
    "start_ms",
    "schema",
    "zero_threshold",
    "zero_count",
    "count",
    "sum",
    "positive_offset",
    "positive_counts",
    "negative_offset",
    "negative_counts",
    "custom_bounds",
    "reset_hint",
];

/// About what it takes to make one, ns.
const WORK: usize = 300;

/// A column of lists.
struct Lists<'b> {
    offsets: &'b [i32],
    values: &'b [f64],
    nulls: Option<&'b NullBuffer>,
}

impl<'b> Lists<'b> {
    fn of(batch: &'b RecordBatch, name: &str) -> Result<Self, QueryError> {
        let lists = column(batch, name)?.as_list::<i32>();
        let values = lists.values().as_primitive::<Float64Type>().values();
        Ok(Lists { offsets: lists.value_offsets(), values, nulls: lists.nulls() })
    }

    /// Empty where there is none.
    fn get(&self, row: usize) -> &'b [f64] {
        if self.nulls.is_some_and(|nulls| nulls.is_null(row)) {
            return &[];
        }
        &self.values[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }
}

/// The columns of a batch.
struct Columns<'b> {
    ts: &'b [i64],
    starts: &'b Int64Array,
    schema: &'b [i32],
    zero_threshold: &'b [f64],
    zero_count: &'b [f64],
    count: &'b [f64],
    sum: &'b [f64],
    positive_offset: &'b [i32],
    positive: Lists<'b>,
    negative_offset: &'b [i32],
    negative: Lists<'b>,
    custom: Lists<'b>,
    reset_hint: &'b [i32],
}

impl<'b> Columns<'b> {
    fn of(batch: &'b RecordBatch) -> Result<Self, QueryError> {
        fn numbers<'b, T: ArrowPrimitiveType>(
            batch: &'b RecordBatch,
            name: &str,
        ) -> Result<&'b [T::Native], QueryError> {
            Ok(column(batch, name)?.as_primitive::<T>().values())
        }
        Ok(Columns {
            ts: numbers::<Int64Type>(batch, "ts_ms")?,
            starts: column(batch, "start_ms")?.as_primitive::<Int64Type>(),
            schema: numbers::<Int32Type>(batch, "schema")?,
            zero_threshold: numbers::<Float64Type>(batch, "zero_threshold")?,
            zero_count: numbers::<Float64Type>(batch, "zero_count")?,
            count: numbers::<Float64Type>(batch, "count")?,
            sum: numbers::<Float64Type>(batch, "sum")?,
            positive_offset: numbers::<Int32Type>(batch, "positive_offset")?,
            positive: Lists::of(batch, "positive_counts")?,
            negative_offset: numbers::<Int32Type>(batch, "negative_offset")?,
            negative: Lists::of(batch, "negative_counts")?,
            custom: Lists::of(batch, "custom_bounds")?,
            reset_hint: numbers::<Int32Type>(batch, "reset_hint")?,
        })
    }

    fn histogram(&self, row: usize) -> Histogram {
        Histogram {
            schema: self.schema[row],
            zero_threshold: self.zero_threshold[row],
            zero_count: self.zero_count[row],
            count: self.count[row],
            sum: self.sum[row],
            positive: populated(self.positive_offset[row], self.positive.get(row)),
            negative: populated(self.negative_offset[row], self.negative.get(row)),
            custom: self.custom.get(row).to_vec(),
            hint: ResetHint::from_code(self.reset_hint[row]),
        }
    }
}

/// Puts the histograms from `from_ms` on into the series they are of. `batches`: in commit order, with [`COLUMNS`].
pub(super) fn put(
    selected: &Selected,
    batches: &[(usize, RecordBatch)],
    from_ms: i64,
    reading: Reading,
    out: &mut [SeriesData],
) -> Result<(), QueryError> {
    let pieces = pieces(selected, batches)?;
    let columns = batches.iter().map(|(_, batch)| Columns::of(batch)).collect::<Result<Vec<_>, _>>()?;
    let rows: usize = batches.iter().map(|(_, batch)| batch.num_rows()).sum();
    let by_series: Vec<&[Piece]> = pieces.chunk_by(|a, b| a.series == b.series).collect();
    let made = parallel::map(by_series.len(), rows.saturating_mul(WORK), |n| {
        Ok::<_, QueryError>(of_series(by_series[n], &columns, from_ms, reading))
    })?;
    for (pieces, (histograms, starts)) in by_series.iter().zip(made) {
        let series = &mut out[pieces[0].series as usize];
        (series.histograms, series.histogram_starts) = (histograms, starts);
    }
    Ok(())
}

/// Histograms with their times (ms), ascending, and their start times, where any has one.
type Made = (Vec<(i64, Arc<Histogram>)>, Vec<i64>);

fn of_series(pieces: &[Piece], columns: &[Columns<'_>], from_ms: i64, reading: Reading) -> Made {
    let rows = pieces.iter().map(|p| p.rows.len()).sum();
    let (mut histograms, mut starts) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for p in pieces {
        let columns = &columns[p.batch as usize];
        for row in p.rows.start as usize..p.rows.end as usize {
            starts.push(if columns.starts.is_valid(row) { columns.starts.value(row) } else { 0 });
            histograms.push((columns.ts[row], Arc::new(columns.histogram(row))));
        }
    }
    sort(&mut histograms, &mut starts);
    hint_resets(&mut histograms, reading.tell_drops);
    let early = histograms.partition_point(|h| h.0 < from_ms);
    histograms.drain(..early);
    starts.drain(..early);
    if starts.iter().all(|s| *s == 0) {
        starts.clear();
    }
    (histograms, starts)
}

/// Tells of each counter histogram when it was not reset since the one before, as a Prometheus store does.
fn hint_resets(histograms: &mut [(i64, Arc<Histogram>)], tell_drops: bool) {
    for i in 1..histograms.len() {
        let (before, now) = histograms.split_at_mut(i);
        let (before, now) = (&before[i - 1].1, &mut now[0].1);
        let known = now.hint != ResetHint::Unknown || before.hint == ResetHint::Gauge;
        if known || is_stale(before.sum) || is_stale(now.sum) {
            continue;
        }
        // A drop stays unknown: the one that fell may have come out of order.
        match (now.is_reset_since(before), tell_drops) {
            (false, _) => Arc::make_mut(now).hint = ResetHint::NotReset,
            (true, true) => Arc::make_mut(now).hint = ResetHint::Reset,
            (true, false) => {}
        }
    }
}

/// Ascending times; of equal ones the last in commit order stays.
fn sort(histograms: &mut Vec<(i64, Arc<Histogram>)>, starts: &mut Vec<i64>) {
    if !histograms.windows(2).all(|w| w[0].0 < w[1].0) {
        // A stable sort by time: the last of equal ones is the last that was committed.
        let mut rows: Vec<_> = std::mem::take(histograms).into_iter().zip(std::mem::take(starts)).collect();
        rows.sort_by_key(|((t, _), _)| *t);
        rows.dedup_by(|next, kept| {
            let same = next.0.0 == kept.0.0;
            if same {
                std::mem::swap(next, kept);
            }
            same
        });
        (*histograms, *starts) = rows.into_iter().unzip();
    }
}
