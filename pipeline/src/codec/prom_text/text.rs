//! Prometheus text 0.0.4 and 1.0.0.

use memchr::memchr;

use super::{
    DecodeError, Family, Options, Point, Read, Sample,
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
    while !rest.is_empty() {
        at += 1;
        let end = memchr(b'\n', rest.as_bytes()).unwrap_or(rest.len());
        let text = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or("");
        let mut line = Line::new(text.strip_suffix('\r').unwrap_or(text), Blanks::Any);
        line.skip();
        match line.peek() {
            None => {}
            Some(b'#') => {
                meta(&mut line, &mut current).map_err(at_line(at))?;
                holder.turn(current.family(), take)?;
            }
            Some(_) => {
                let from = line.at;
                let end = line.series(&mut labels).map_err(at_line(at))?;
                let (value, ts_ms) = point(&mut line).map_err(at_line(at))?;
                normalise(current.metric_type(), &mut labels);
                let family = current.family().filter(|f| f.has(&labels[0].1));
                let key = &line.upto(end).as_bytes()[from..];
                match (holder.part(family, &labels), family) {
                    (Some(Part::Created), Some(family)) => holder.created(family, &labels, ts_ms, value),
                    (Some(part), Some(family)) => {
                        let labels = std::mem::take(&mut labels);
                        let line = custom_buckets::Line { key, labels, value, ts_ms, exemplar: None };
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
                    exemplars: &[],
                    family,
                })?;
            }
        }
    }
    holder.flush(take)?;
    Ok(Read { not_converted: holder.not_converted })
}

fn point(line: &mut Line<'_>) -> Told<(f64, Option<i64>)> {
    let value = line.value("a value after the series")?;
    line.skip();
    if line.is_end() {
        return Ok((value, None));
    }
    let shown = line.shown();
    let ms = line.word().parse().map_err(|_| format!("the timestamp is not an integer of milliseconds: {shown}"))?;
    line.skip();
    if line.is_end() {
        Ok((value, Some(ms)))
    } else {
        Err(format!("expected the end of the line, got {}", line.shown()))
    }
}

/// `# HELP`, `# TYPE`; all else is a comment.
fn meta<'a>(line: &mut Line<'a>, current: &mut Current<'a>) -> Told<()> {
    line.at += 1;
    let apart = matches!(line.peek(), Some(b' ' | b'\t'));
    line.skip();
    let kind = line.word();
    if !matches!(kind, "HELP" | "TYPE") || !apart {
        return Ok(());
    }
    line.gap("a metric name").map_err(|_| format!("expected a metric name after {kind}"))?;
    let name = line.family()?;
    if kind == "HELP" {
        if !line.is_end() {
            line.gap("a help text")?;
        }
        current.of(name).help = Some(help(line.rest())).filter(|h| !h.is_empty());
        return Ok(());
    }
    line.gap("a metric type")?;
    let word = line.word();
    line.skip();
    if !line.is_end() {
        return Err(format!("expected the end of the line after the metric type, got {}", line.shown()));
    }
    let family: &mut Family<'_> = current.of(name);
    family.metric_type = Some(match word {
        "counter" => "counter",
        "gauge" => "gauge",
        "histogram" => "histogram",
        "summary" => "summary",
        "untyped" | "unknown" => "unknown",
        other => return Err(format!("invalid metric type {other:?}")),
    });
    Ok(())
}
