//! OpenMetrics text 1.0 and 0.0.1.
//!
//! `_created` samples are series as any other, as they are in Prometheus.

use std::borrow::Cow;

use memchr::memchr;

use super::{
    DecodeError, Exemplar, Label, Options, Point, Read, Sample,
    custom_buckets::{self, Holder, Part},
    lexer::{Blanks, Current, Line, Told, at_line, help, normalise},
};

pub(super) fn decode<E: From<DecodeError>>(
    text: &str,
    options: Options,
    take: &mut dyn FnMut(&Sample<'_>) -> Result<(), E>,
) -> Result<Read, E> {
    let mut current = Current::default();
    let mut holder = Holder::new(options);
    let mut labels = Vec::new();
    let (mut rest, mut at) = (text, 0);
    let mut ended = false;
    while !rest.is_empty() {
        at += 1;
        if ended {
            return Err(at_line(at)("unexpected data after # EOF".to_owned()).into());
        }
        let end = memchr(b'\n', rest.as_bytes()).unwrap_or(rest.len());
        let text = &rest[..end];
        // `# EOF` alone may lack its line's end.
        if end == rest.len() && text != "# EOF" {
            return Err(at_line(at)("data does not end with # EOF".to_owned()).into());
        }
        rest = rest.get(end + 1..).unwrap_or("");
        let mut line = Line::new(text, Blanks::One);
        match line.peek() {
            None => return Err(at_line(at)("a blank line".to_owned()).into()),
            Some(b'#') => {
                ended = meta(&mut line, &mut current).map_err(at_line(at))?;
                holder.turn(current.family(), take)?;
            }
            Some(_) => {
                let end = line.series(&mut labels).map_err(at_line(at))?;
                let (value, ts_ms, exemplar) = point(&mut line).map_err(at_line(at))?;
                normalise(current.metric_type(), &mut labels);
                let family = current.family().filter(|f| f.has(&labels[0].1));
                let key = line.upto(end).as_bytes();
                match (holder.part(family, &labels), family) {
                    (Some(Part::Created), Some(family)) => holder.created(family, &labels, ts_ms, value),
                    (Some(part), Some(family)) => {
                        let labels = std::mem::take(&mut labels);
                        let line = custom_buckets::Line { key, labels, value, ts_ms, exemplar };
                        holder.hold(family, part, line, take)?;
                        continue;
                    }
                    _ => {}
                }
                take(&Sample {
                    key,
                    labels: &labels,
                    point: Point::Value(value),
                    ts_ms,
                    start_ms: None,
                    exemplars: exemplar.as_slice(),
                    family,
                })?;
            }
        }
    }
    if !ended {
        return Err(at_line(at + 1)("data does not end with # EOF".to_owned()).into());
    }
    holder.flush(take)?;
    Ok(Read { not_converted: holder.not_converted })
}

/// Value, time and exemplar.
fn point<'a>(line: &mut Line<'a>) -> Told<(f64, Option<i64>, Option<Exemplar<'a>>)> {
    let value = line.value("a value after the series")?;
    let mut ts_ms = None;
    if line.rest().starts_with(' ') && !line.rest().starts_with(" #") {
        ts_ms = Some(seconds(line, "a timestamp")?);
    }
    if line.is_end() {
        return Ok((value, ts_ms, None));
    }
    line.gap("an exemplar")?;
    if !line.eat(b'#') {
        return Err(format!("expected an exemplar or the end of the line, got {}", line.shown()));
    }
    line.gap("an exemplar's labels")?;
    if line.peek() != Some(b'{') {
        return Err(format!("expected an exemplar's labels, got {}", line.shown()));
    }
    let mut labels: Vec<Label<'a>> = Vec::new();
    // A text without a value would be the metric's name.
    line.label_set(&mut labels, true)?;
    let exemplar_value = line.value("an exemplar's value")?;
    let mut exemplar_ms = None;
    if !line.is_end() {
        exemplar_ms = Some(seconds(line, "an exemplar's timestamp")?);
    }
    if !line.is_end() {
        return Err(format!("expected the end of the line, got {}", line.shown()));
    }
    Ok((value, ts_ms, Some(Exemplar { labels, value: exemplar_value, ts_ms: exemplar_ms })))
}

/// Seconds as milliseconds.
fn seconds(line: &mut Line<'_>, what: &str) -> Told<i64> {
    let value = line.value(what)?;
    if !value.is_finite() {
        return Err(format!("{what} is not finite"));
    }
    Ok((value * 1000.0) as i64)
}

/// A line that starts with `#`. `true`: it is the last.
fn meta<'a>(line: &mut Line<'a>, current: &mut Current<'a>) -> Told<bool> {
    if line.rest() == "# EOF" {
        line.at = line.rest().len();
        return Ok(true);
    }
    let wrong = || "expected # TYPE, # HELP, # UNIT or # EOF".to_owned();
    let text = line.rest().strip_prefix("# ").ok_or_else(wrong)?;
    let kind = ["TYPE ", "HELP ", "UNIT "].into_iter().find(|k| text.starts_with(*k)).ok_or_else(wrong)?;
    line.at += 2 + kind.len();
    let name = line.family()?;
    match kind {
        "TYPE " => {
            line.gap("a metric type")?;
            let metric_type = match line.rest() {
                "counter" => "counter",
                "gauge" => "gauge",
                "histogram" => "histogram",
                "gaugehistogram" => "gaugehistogram",
                "summary" => "summary",
                "info" => "info",
                "stateset" => "stateset",
                "unknown" => "unknown",
                other => return Err(format!("invalid metric type {other:?}")),
            };
            current.of(name).metric_type = Some(metric_type);
        }
        "HELP " => {
            if !line.is_end() {
                line.gap("a help text")?;
            }
            current.of(name).help = Some(help(line.rest())).filter(|h| !h.is_empty());
        }
        _ => {
            if !line.is_end() {
                line.gap("a unit")?;
            }
            let unit = line.rest();
            if !unit.is_empty() && !name.strip_suffix(unit).is_some_and(|stem| stem.ends_with('_')) {
                return Err(format!("unit {unit:?} is not a suffix of metric {name:?}"));
            }
            current.of(name).unit = Some(Cow::Borrowed(unit)).filter(|u| !u.is_empty());
        }
    }
    Ok(false)
}
