//! Calendar functions of Unix seconds, UTC.

use chrono::{DateTime, Datelike, NaiveDate, Timelike, Utc};

/// The function's value at Unix seconds (truncated); NaN outside of what a calendar can say. `None`: no date function.
pub(super) fn function(name: &str) -> Option<fn(f64) -> f64> {
    fn at(seconds: f64) -> Option<DateTime<Utc>> {
        if seconds.is_nan() {
            return None;
        }
        DateTime::from_timestamp(seconds.trunc() as i64, 0)
    }
    fn days_in_month(d: DateTime<Utc>) -> f64 {
        let (year, month) = if d.month() == 12 { (d.year() + 1, 1) } else { (d.year(), d.month() + 1) };
        NaiveDate::from_ymd_opt(year, month, 1)
            .and_then(|next| next.pred_opt())
            .map_or(f64::NAN, |last| f64::from(last.day()))
    }
    Some(match name {
        "minute" => |v| at(v).map_or(f64::NAN, |d| f64::from(d.minute())),
        "hour" => |v| at(v).map_or(f64::NAN, |d| f64::from(d.hour())),
        "day_of_month" => |v| at(v).map_or(f64::NAN, |d| f64::from(d.day())),
        "day_of_week" => |v| at(v).map_or(f64::NAN, |d| f64::from(d.weekday().num_days_from_sunday())),
        "day_of_year" => |v| at(v).map_or(f64::NAN, |d| f64::from(d.ordinal())),
        "days_in_month" => |v| at(v).map_or(f64::NAN, days_in_month),
        "month" => |v| at(v).map_or(f64::NAN, |d| f64::from(d.month())),
        "year" => |v| at(v).map_or(f64::NAN, |d| f64::from(d.year())),
        _ => return None,
    })
}
