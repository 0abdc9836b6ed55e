//! Values as Prometheus' JSON. Series' labels come in sorted order, floats as text, times as seconds.

use std::fmt::Write as _;

use storage::model::{Labels, json::write_string};

use crate::promql::{Point, Value, format_float, histogram::Histogram};

/// Seconds, with three decimals unless whole.
pub fn write_time(out: &mut String, ms: i64) {
    let (sign, size) = if ms < 0 { ("-", ms.unsigned_abs()) } else { ("", ms.unsigned_abs()) };
    let _ = match size % 1000 {
        0 => write!(out, "{sign}{}", size / 1000),
        fraction => write!(out, "{sign}{}.{fraction:03}", size / 1000),
    };
}

pub fn write_labels(out: &mut String, labels: &Labels) {
    out.push('{');
    for (i, (name, value)) in labels.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_string(out, name);
        out.push(':');
        write_string(out, value);
    }
    out.push('}');
}

fn write_float(out: &mut String, value: f64) {
    let _ = write!(out, "\"{}\"", format_float(value));
}

fn write_histogram(out: &mut String, h: &Histogram) {
    out.push_str("{\"count\":");
    write_float(out, h.count);
    out.push_str(",\"sum\":");
    write_float(out, h.sum);
    let buckets = h.ruled_buckets();
    for (i, (rule, b)) in buckets.iter().enumerate() {
        out.push_str(if i == 0 { ",\"buckets\":[" } else { "," });
        let _ = write!(out, "[{rule},");
        write_float(out, b.lower);
        out.push(',');
        write_float(out, b.upper);
        out.push(',');
        write_float(out, b.count);
        out.push(']');
    }
    if !buckets.is_empty() {
        out.push(']');
    }
    out.push('}');
}

fn write_point(out: &mut String, ms: i64, point: &Point) {
    out.push('[');
    write_time(out, ms);
    out.push(',');
    match point {
        Point::Float(v) => write_float(out, *v),
        Point::Histogram(h) => write_histogram(out, h),
        Point::None => out.push_str("null"),
    }
    out.push(']');
}

/// `"resultType":..,"result":..`, without braces, so that statistics can follow.
pub fn write_value(out: &mut String, value: &Value) {
    match value {
        Value::Scalar { ts_ms, value } => {
            out.push_str("\"resultType\":\"scalar\",\"result\":");
            write_point(out, *ts_ms, &Point::Float(*value));
        }
        Value::String { ts_ms, value } => {
            out.push_str("\"resultType\":\"string\",\"result\":[");
            write_time(out, *ts_ms);
            out.push(',');
            write_string(out, value);
            out.push(']');
        }
        Value::Vector { ts_ms, samples } => {
            out.push_str("\"resultType\":\"vector\",\"result\":[");
            for (i, s) in samples.iter().enumerate() {
                out.push_str(if i > 0 { ",{\"metric\":" } else { "{\"metric\":" });
                write_labels(out, &s.labels);
                out.push_str(if s.point.histogram().is_some() { ",\"histogram\":" } else { ",\"value\":" });
                write_point(out, *ts_ms, &s.point);
                out.push('}');
            }
            out.push(']');
        }
        Value::Matrix(series) => {
            out.push_str("\"resultType\":\"matrix\",\"result\":[");
            for (i, s) in series.iter().enumerate() {
                out.push_str(if i > 0 { ",{\"metric\":" } else { "{\"metric\":" });
                write_labels(out, &s.labels);
                for (key, histograms) in [("values", false), ("histograms", true)] {
                    let mut points = s.points.iter().filter(|p| p.1.histogram().is_some() == histograms).peekable();
                    if points.peek().is_none() {
                        continue;
                    }
                    let _ = write!(out, ",\"{key}\":[");
                    for (n, (t, p)) in points.enumerate() {
                        if n > 0 {
                            out.push(',');
                        }
                        write_point(out, *t, p);
                    }
                    out.push(']');
                }
                out.push('}');
            }
            out.push(']');
        }
    }
}

/// A JSON array of strings.
pub fn write_strings<'a>(out: &mut String, list: impl IntoIterator<Item = &'a str>) {
    out.push('[');
    for (i, s) in list.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_string(out, s);
    }
    out.push(']');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_without_exponents() {
        let text = |ms| {
            let mut out = String::new();
            write_time(&mut out, ms);
            out
        };
        assert_eq!(text(1_700_000_000_000), "1700000000");
        assert_eq!(text(1_700_000_000_100), "1700000000.100");
        assert_eq!(text(-500), "-0.500");
    }
}
