//! How fine a native histogram may be: `native_histogram_min_bucket_factor` and `native_histogram_bucket_limit`.

use storage::model::batch::HistogramRow;

/// Finest and coarsest exponential schema.
const SCHEMA_MAX: i32 = 8;
const SCHEMA_MIN: i32 = -4;
/// Empty buckets between others that Prometheus keeps, and counts, of integers in custom buckets.
const EMPTY_KEPT: usize = 2;

/// What a job allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resolution {
    /// Populated buckets. `None`: any number.
    pub buckets_max: Option<u64>,
    /// Finest schema.
    pub schema_max: i32,
}

/// The finest schema whose buckets grow by `factor` or more; 0 and below: any. Source: Prometheus 3.
pub fn schema_of(factor: f64) -> i32 {
    if factor <= 1.0 {
        return SCHEMA_MAX;
    }
    // Within the bounds of an i32.
    (-factor.log2().log2()).floor().clamp(f64::from(SCHEMA_MIN), f64::from(SCHEMA_MAX)) as i32
}

/// Buckets that Prometheus would have of it.
fn populated(row: &HistogramRow) -> u64 {
    let kept = if row.custom_bounds.is_some() && !row.is_float { EMPTY_KEPT } else { 0 };
    let of = |counts: &[f64]| {
        let (mut all, mut empty) = (0, 0);
        for count in counts {
            if *count == 0.0 {
                empty += 1;
                continue;
            }
            all += 1 + if all > 0 && empty <= kept { empty } else { 0 };
            empty = 0;
        }
        all as u64
    };
    of(&row.positive_counts) + of(&row.negative_counts)
}

/// Buckets of a schema finer by `shift` merged. Bucket i reaches up to base^i.
fn merged(offset: i32, counts: &[f64], shift: u32) -> (i32, Vec<f64>) {
    let place = |at: usize| ((i64::from(offset) + at as i64 - 1) >> shift) + 1;
    let Some(last) = counts.len().checked_sub(1) else { return (0, Vec::new()) };
    let low = place(0);
    // No more than there were.
    let mut out = vec![0.0; (place(last) - low) as usize + 1];
    for (at, count) in counts.iter().enumerate() {
        out[(place(at) - low) as usize] += count;
    }
    (i32::try_from(low).unwrap_or(offset), out)
}

fn reduced(row: &HistogramRow, schema: i32) -> HistogramRow {
    let shift = row.schema.abs_diff(schema);
    let (positive_offset, positive_counts) = merged(row.positive_offset, &row.positive_counts, shift);
    let (negative_offset, negative_counts) = merged(row.negative_offset, &row.negative_counts, shift);
    HistogramRow { schema, positive_offset, positive_counts, negative_offset, negative_counts, ..row.clone() }
}

impl Resolution {
    /// The histogram where it must be coarser. `Err`: it has too many buckets at any resolution.
    pub fn fit(&self, row: &HistogramRow) -> Result<Option<HistogramRow>, ()> {
        let is_custom = row.custom_bounds.is_some();
        let mut out = (!is_custom && row.schema > self.schema_max).then(|| reduced(row, self.schema_max));
        let Some(limit) = self.buckets_max else { return Ok(out) };
        loop {
            let now = out.as_ref().unwrap_or(row);
            if populated(now) <= limit {
                return Ok(out);
            }
            if is_custom || now.schema <= SCHEMA_MIN {
                return Err(());
            }
            out = Some(reduced(now, now.schema - 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponential(schema: i32, positive_offset: i32, counts: &[f64]) -> HistogramRow {
        HistogramRow { schema, positive_offset, positive_counts: counts.to_vec(), ..HistogramRow::default() }
    }

    fn custom(counts: &[f64], is_float: bool) -> HistogramRow {
        let bounds = (1..counts.len()).map(|i| i as f64).collect();
        HistogramRow { custom_bounds: Some(bounds), is_float, ..exponential(-53, 0, counts) }
    }

    #[test]
    fn a_factor_allows_the_finest_schema_that_grows_by_it() {
        // 2^(1/2^schema): 1.0027 at 8, 1.09 at 3, 1.19 at 2, 2 at 0, 65536 at -4.
        for (factor, schema) in
            [(0.0, 8), (1.0, 8), (1.001, 8), (1.01, 6), (1.09, 3), (1.1, 2), (2.0, 0), (4.0, -1), (1e9, -4)]
        {
            assert_eq!(schema_of(factor), schema, "{factor}");
        }
    }

    #[test]
    fn a_histogram_is_made_as_coarse_as_its_limits_want() {
        let row = exponential(1, -1, &[1.0, 2.0, 4.0, 0.0, 8.0]);
        let fit = |buckets_max, schema_max| Resolution { buckets_max, schema_max }.fit(&row);
        assert_eq!(fit(None, 8), Ok(None));
        assert_eq!(fit(Some(4), 1), Ok(None), "empty ones do not count");
        // Indexes -1 to 3 become 0, 0, 1, 1, 2.
        assert_eq!(fit(None, 0), Ok(Some(exponential(0, 0, &[3.0, 4.0, 8.0]))));
        assert_eq!(fit(Some(3), 8), Ok(Some(exponential(0, 0, &[3.0, 4.0, 8.0]))));
        assert_eq!(fit(Some(2), 8), Ok(Some(exponential(-1, 0, &[3.0, 12.0]))));
        assert_eq!(fit(Some(1), 8), Err(()), "0 and 1 are never one bucket");
    }

    #[test]
    fn custom_buckets_fit_or_do_not() {
        let fit = |row: &HistogramRow, limit| Resolution { buckets_max: Some(limit), schema_max: 0 }.fit(row);
        let row = custom(&[0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0], false);
        assert_eq!((fit(&row, 5), fit(&row, 4)), (Ok(None), Err(())), "runs of one or two empty ones count");
        let row = HistogramRow { is_float: true, ..row };
        assert_eq!((fit(&row, 3), fit(&row, 2)), (Ok(None), Err(())));
    }
}
