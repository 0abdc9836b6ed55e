//! What an evaluation gives, and how numbers are summed and written.

use std::sync::Arc;

use storage::model::Labels;

use super::histogram::Histogram;

/// A value of one series at one time, or its absence.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Point {
    #[default]
    None,
    Float(f64),
    Histogram(Arc<Histogram>),
}

impl Point {
    pub fn is_some(&self) -> bool {
        !matches!(self, Point::None)
    }

    pub fn float(&self) -> Option<f64> {
        if let Point::Float(v) = self { Some(*v) } else { None }
    }

    pub fn histogram(&self) -> Option<&Arc<Histogram>> {
        if let Point::Histogram(h) = self { Some(h) } else { None }
    }
}

/// One element of an instant vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Arc<Labels>,
    pub point: Point,
}

/// One series of a matrix: points in time order, absent ones left out.
#[derive(Clone, Debug, PartialEq)]
pub struct SeriesPoints {
    pub labels: Arc<Labels>,
    /// Milliseconds.
    pub points: Vec<(i64, Point)>,
}

/// The answer to a query.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Scalar { ts_ms: i64, value: f64 },
    String { ts_ms: i64, value: String },
    Vector { ts_ms: i64, samples: Vec<Sample> },
    Matrix(Vec<SeriesPoints>),
}

/// Compensated summation (Neumaier's variant of Kahan's).
#[derive(Clone, Copy, Debug, Default)]
pub struct Kahan {
    sum: f64,
    compensation: f64,
}

impl Kahan {
    pub fn add(&mut self, value: f64) {
        let t = self.sum + value;
        if t.is_infinite() {
            self.compensation = 0.0;
        } else if self.sum.abs() >= value.abs() {
            self.compensation += (self.sum - t) + value;
        } else {
            self.compensation += (value - t) + self.sum;
        }
        self.sum = t;
    }

    /// The sum without its compensation: what tells of overflow.
    pub fn raw(&self) -> f64 {
        self.sum
    }

    pub fn total(&self) -> f64 {
        self.sum + self.compensation
    }
}

/// Mean of a stream: sum over count, and from an overflow on the incremental mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mean {
    sum: Kahan,
    count: f64,
    /// Mean so far and its compensation, once the sum has overflown.
    incremental: Option<Kahan>,
}

impl Mean {
    pub fn add(&mut self, value: f64) {
        self.count += 1.0;
        if self.incremental.is_none() {
            let mut next = self.sum;
            next.add(value);
            if self.count == 1.0 || next.raw().is_finite() {
                self.sum = next;
                return;
            }
            let n = self.count - 1.0;
            self.incremental = Some(Kahan { sum: self.sum.sum / n, compensation: self.sum.compensation / n });
        }
        let mean = self.incremental.as_mut().expect("set above");
        let q = (self.count - 1.0) / self.count;
        let mut next = Kahan { sum: q * mean.sum, compensation: q * mean.compensation };
        next.add(value / self.count);
        *mean = next;
    }

    pub fn value(&self) -> f64 {
        match &self.incremental {
            Some(mean) => mean.total(),
            None => self.sum.sum / self.count + self.sum.compensation / self.count,
        }
    }
}

/// As JSON answers and Prometheus write floats: shortest text that reads back, plain unless very small or large.
pub fn format_float(value: f64) -> String {
    format_with(value, 1e-6, 1e21)
}

/// Shortest plain decimal, whatever its length: label values of `count_values`.
pub fn format_plain(value: f64) -> String {
    format_with(value, 0.0, f64::INFINITY)
}

/// As Go's `%g` with the shortest precision: exponent below 1e-4 and from 1e21 on.
pub fn format_general(value: f64) -> String {
    format_with(value, 1e-4, 1e21)
}

fn format_with(value: f64, plain_from: f64, plain_below: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let size = value.abs();
    if size == 0.0 || (size >= plain_from && size < plain_below) {
        return format!("{value}");
    }
    // Rust writes `1e-7`, Go `1e-07`.
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(e) => ('-', e),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_prometheus_writes_them() {
        for (value, text) in [
            (1.0, "1"),
            (0.1, "0.1"),
            (-0.0, "-0"),
            (1e-7, "1e-07"),
            (1e-6, "0.000001"),
            (1.5e21, "1.5e+21"),
            (1e20, "100000000000000000000"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(format_float(value), text);
        }
    }

    #[test]
    fn sums_are_compensated_and_means_survive_overflow() {
        let mut k = Kahan::default();
        [1e100, 1.0, -1e100].into_iter().for_each(|v| k.add(v));
        assert_eq!(k.total(), 1.0);
        let mut m = Mean::default();
        [1.5e308, 1.5e308].into_iter().for_each(|v| m.add(v));
        assert!((m.value() / 1.5e308 - 1.0).abs() < 1e-12);
    }
}
