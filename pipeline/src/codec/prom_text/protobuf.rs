//! Delimited protobuf: `io.prometheus.client.MetricFamily` after `MetricFamily`, each behind its length.
//!
//! A classic histogram or summary becomes the series its text form has. A native histogram is one sample; the classic part
//! of one that has both is left out unless [`Options::classic_too`]. With [`Options::custom_buckets`] one that is only classic
//! becomes a native one.

use std::borrow::Cow;

use storage::model::batch::HistogramRow;

use super::{
    DecodeError, Exemplar, Family, Label, Options, Point, Read, Sample,
    custom_buckets::{self, Classic},
    float,
};
use crate::codec::{
    Malformed,
    otlp::wire::{Reader, Wire},
    remote_write::histogram::{self, GAPS_MAX, Sent},
};

/// Reset hint of a histogram that may go down.
const GAUGE: i32 = 3;

const COUNTER: u64 = 0;
const TYPES: [&str; 6] = ["counter", "gauge", "summary", "unknown", "histogram", "gaugehistogram"];

type Told<T> = Result<T, Malformed>;

pub(super) fn decode<E: From<DecodeError>>(
    body: &[u8],
    options: Options,
    take: &mut dyn FnMut(&Sample<'_>) -> Result<(), E>,
) -> Result<Read, E> {
    let mut gaps = GAPS_MAX;
    let mut told = Read::default();
    let (mut rest, mut at) = (body, 0);
    while !rest.is_empty() {
        at += 1;
        let wrong = |m: Malformed| DecodeError { place: "metric family", at, message: m.0 };
        let (len, after) = histogram::varint(rest).map_err(wrong)?;
        let cut = usize::try_from(len).ok().and_then(|len| after.split_at_checked(len));
        let (message, after) =
            cut.ok_or_else(|| wrong(Malformed(format!("a message of {len} bytes, but {} are left", after.len()))))?;
        rest = after;
        let mut emit =
            Emitter { options, gaps: &mut gaps, told: &mut told, take: &mut *take, stopped: None, key: Vec::new() };
        let read = family(message, &mut emit);
        if let Some(stopped) = emit.stopped {
            return Err(stopped);
        }
        read.map_err(wrong)?;
    }
    Ok(told)
}

struct Emitter<'t, 'g, E> {
    options: Options,
    /// Empty buckets that this body may still cost.
    gaps: &'g mut usize,
    told: &'g mut Read,
    take: &'t mut dyn FnMut(&Sample<'_>) -> Result<(), E>,
    /// What `take` said.
    stopped: Option<E>,
    key: Vec<u8>,
}

/// What the samples of one metric share.
struct Metric<'a, 'f> {
    family: &'f Family<'a>,
    /// The family's name with what its parts are called.
    names: &'f Names,
    labels: Vec<Label<'a>>,
    ts_ms: Option<i64>,
}

struct Names {
    count: String,
    sum: String,
    bucket: String,
}

#[cold]
fn stop() -> Malformed {
    Malformed(String::new())
}

fn text(bytes: &[u8]) -> Told<&str> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("invalid UTF-8".to_owned()))
}

fn double(wire: Wire<'_>) -> Told<f64> {
    wire.fixed64().map(f64::from_bits)
}

fn family<E>(message: &[u8], emit: &mut Emitter<'_, '_, E>) -> Told<()> {
    let mut told = Family::default();
    let mut kind = COUNTER;
    let mut r = Reader::new(message);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => told.name = Cow::Borrowed(text(wire.bytes()?)?),
            2 => told.help = Some(Cow::Borrowed(text(wire.bytes()?)?)).filter(|h| !h.is_empty()),
            3 => kind = wire.varint()?,
            5 => told.unit = Some(Cow::Borrowed(text(wire.bytes()?)?)).filter(|u| !u.is_empty()),
            _ => {}
        }
    }
    if told.name.is_empty() {
        return Err(Malformed("a metric family without a name".to_owned()));
    }
    let known = usize::try_from(kind).ok().and_then(|k| TYPES.get(k));
    told.metric_type =
        Some(known.ok_or_else(|| Malformed(format!("unknown metric type {kind} of {:?}", told.name)))?);
    let part = |suffix: &str| format!("{}{suffix}", told.name);
    let names = Names { count: part("_count"), sum: part("_sum"), bucket: part("_bucket") };
    let mut r = Reader::new(message);
    while let Some((number, wire)) = r.field()? {
        if number == 4 {
            metric(wire.bytes()?, &told, &names, emit)?;
        }
    }
    Ok(())
}

fn metric<'a, E>(bytes: &'a [u8], family: &Family<'a>, names: &Names, emit: &mut Emitter<'_, '_, E>) -> Told<()> {
    let mut m = Metric { family, names, labels: Vec::new(), ts_ms: None };
    m.labels.push((Cow::Borrowed("__name__"), family.name.clone()));
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => m.labels.push(label(wire.bytes()?)?),
            6 => m.ts_ms = Some(wire.varint()? as i64).filter(|ms| *ms != 0),
            _ => {}
        }
    }
    // Which value counts, the family's type tells.
    let wanted = match family.metric_type {
        Some("counter") => 3,
        Some("gauge") => 2,
        Some("summary") => 4,
        Some("unknown") => 5,
        _ => 7,
    };
    let mut found: &[u8] = &[];
    let mut there = false;
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        if number == wanted {
            (found, there) = (wire.bytes()?, true);
        }
    }
    if !there {
        let (name, kind) = (&family.name, family.metric_type.unwrap_or_default());
        return Err(Malformed(format!("a metric of {name:?} has no value of its type {kind}")));
    }
    match wanted {
        4 => summary(found, &mut m, emit),
        7 => histogram(found, &mut m, emit),
        _ => simple(found, &m, emit),
    }
}

fn label(bytes: &[u8]) -> Told<Label<'_>> {
    let (mut name, mut value) = ("", "");
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => name = text(wire.bytes()?)?,
            2 => value = text(wire.bytes()?)?,
            _ => {}
        }
    }
    if name.is_empty() {
        Err(Malformed("a label without a name".to_owned()))
    } else {
        Ok((name.into(), value.into()))
    }
}

/// A `google.protobuf.Timestamp` in ms.
fn timestamp(bytes: &[u8]) -> Told<i64> {
    let (mut seconds, mut nanos) = (0i64, 0i64);
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => seconds = wire.varint()? as i64,
            2 => nanos = wire.varint()? as i64,
            _ => {}
        }
    }
    Ok(seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000))
}

fn exemplar(bytes: &[u8]) -> Told<Exemplar<'_>> {
    let mut out = Exemplar { labels: Vec::new(), value: 0.0, ts_ms: None };
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => out.labels.push(label(wire.bytes()?)?),
            2 => out.value = double(wire)?,
            3 => out.ts_ms = Some(timestamp(wire.bytes()?)?),
            _ => {}
        }
    }
    Ok(out)
}

/// A counter, gauge or untyped value: the value is field 1 of each.
fn simple<E>(bytes: &[u8], m: &Metric<'_, '_>, emit: &mut Emitter<'_, '_, E>) -> Told<()> {
    let (mut value, mut start, mut of) = (0.0, None, None);
    let counts = m.family.metric_type == Some("counter");
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => value = double(wire)?,
            2 if counts => of = Some(exemplar(wire.bytes()?)?),
            3 if counts => start = Some(timestamp(wire.bytes()?)?),
            _ => {}
        }
    }
    emit.give(m, &m.labels, Point::Value(float::normal(value)), start, of.as_slice())
}

fn summary<'a, E>(bytes: &'a [u8], m: &mut Metric<'a, '_>, emit: &mut Emitter<'_, '_, E>) -> Told<()> {
    let (mut count, mut sum, mut start) = (0u64, 0.0, None);
    let mut quantiles = Vec::new();
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => count = wire.varint()?,
            2 => sum = double(wire)?,
            3 => {
                let (mut quantile, mut value) = (0.0, 0.0);
                let mut r = Reader::new(wire.bytes()?);
                while let Some((number, wire)) = r.field()? {
                    match number {
                        1 => quantile = double(wire)?,
                        2 => value = double(wire)?,
                        _ => {}
                    }
                }
                quantiles.push((quantile, value));
            }
            4 => start = Some(timestamp(wire.bytes()?)?),
            _ => {}
        }
    }
    emit.part(m, &m.names.count, None, count as f64, start, &[])?;
    emit.part(m, &m.names.sum, None, sum, start, &[])?;
    for (quantile, value) in quantiles {
        emit.part(m, &m.family.name, Some(("quantile", float::write_float(quantile))), value, start, &[])?;
    }
    Ok(())
}

/// A classic bucket as sent.
struct Bucket<'a> {
    count: f64,
    bound: f64,
    exemplar: Option<Exemplar<'a>>,
}

fn bucket(bytes: &[u8]) -> Told<Bucket<'_>> {
    let mut out = Bucket { count: 0.0, bound: 0.0, exemplar: None };
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => out.count = wire.varint()? as f64,
            2 => out.bound = double(wire)?,
            3 => out.exemplar = Some(exemplar(wire.bytes()?)?),
            // Set only where the count is no integer.
            4 => out.count = Some(double(wire)?).filter(|c| *c > 0.0).unwrap_or(out.count),
            _ => {}
        }
    }
    Ok(out)
}

fn histogram<'a, E>(bytes: &'a [u8], m: &mut Metric<'a, '_>, emit: &mut Emitter<'_, '_, E>) -> Told<()> {
    let mut h = Sent::default();
    let (mut count, mut float_count) = (0u64, 0.0);
    let (mut zero, mut float_zero) = (0u64, 0.0);
    let (mut buckets, mut exemplars, mut start) = (Vec::new(), Vec::new(), None);
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => count = wire.varint()?,
            2 => h.sum = double(wire)?,
            3 => buckets.push(bucket(wire.bytes()?)?),
            4 => float_count = double(wire)?,
            5 => h.schema = histogram::sint32(wire)?,
            6 => h.zero_threshold = double(wire)?,
            7 => zero = wire.varint()?,
            8 => float_zero = double(wire)?,
            9 => h.negative.spans.push(histogram::span(wire.bytes()?)?),
            10 => histogram::deltas(&mut h.negative.deltas, wire)?,
            11 => histogram::doubles(&mut h.negative.counts, wire)?,
            12 => h.positive.spans.push(histogram::span(wire.bytes()?)?),
            13 => histogram::deltas(&mut h.positive.deltas, wire)?,
            14 => histogram::doubles(&mut h.positive.counts, wire)?,
            15 => start = Some(timestamp(wire.bytes()?)?),
            16 => exemplars.push(exemplar(wire.bytes()?)?),
            _ => {}
        }
    }
    let is_float = float_count > 0.0 || float_zero > 0.0;
    let total = if is_float { float_count } else { count as f64 };
    let sum = h.sum;
    // An empty one has an empty span, by which it is known.
    let native = !h.positive.spans.is_empty()
        || !h.negative.spans.is_empty()
        || h.zero_threshold > 0.0
        || zero > 0
        || float_zero > 0.0;
    if native && emit.options.native {
        if is_float {
            (h.count_float, h.zero_float) = (Some(float_count), Some(float_zero));
        } else {
            (h.count_int, h.zero_int) = (Some(count), Some(zero));
        }
        if m.family.metric_type == Some("gaugehistogram") {
            h.reset_hint = GAUGE;
        }
        let read = histogram::check(h, emit.gaps).map_err(|(_, message)| Malformed(message))?;
        // Without its own, those of the classic buckets.
        if exemplars.is_empty() {
            exemplars.extend(buckets.iter().filter_map(|b| b.exemplar.clone()));
        }
        custom_buckets::sort(&mut exemplars);
        let row: HistogramRow = read.row;
        emit.give(m, &m.labels, Point::Histogram(&row), start, &exemplars)?;
        if !emit.options.classic_too || buckets.is_empty() {
            return Ok(());
        }
    } else if emit.options.custom_buckets && m.family.metric_type == Some("histogram") {
        match classic(&buckets, total, sum).convert() {
            None => emit.told.not_converted += 1,
            Some(row) => {
                exemplars.extend(buckets.iter_mut().filter_map(|b| b.exemplar.take()));
                custom_buckets::sort(&mut exemplars);
                emit.give(m, &m.labels, Point::Histogram(&row), start, &exemplars)?;
                if !emit.options.classic_too {
                    return Ok(());
                }
            }
        }
    }
    emit.part(m, &m.names.count, None, total, start, &[])?;
    emit.part(m, &m.names.sum, None, sum, start, &[])?;
    let ends = buckets.last().is_some_and(|b| b.bound == f64::INFINITY);
    for b in &buckets {
        let le = Some(("le", float::write_float(b.bound)));
        emit.part(m, &m.names.bucket, le, b.count, start, b.exemplar.as_slice())?;
    }
    if !ends {
        emit.part(m, &m.names.bucket, Some(("le", "+Inf".to_owned())), total, start, &[])?;
    }
    Ok(())
}

fn classic(buckets: &[Bucket<'_>], count: f64, sum: f64) -> Classic {
    let mut out = Classic::default();
    for bucket in buckets {
        out.bucket(Some(bucket.bound), bucket.count);
    }
    out.count(count);
    out.sum(float::normal(sum));
    out
}

impl<E> Emitter<'_, '_, E> {
    /// A part of a classic histogram or a summary.
    fn part(
        &mut self,
        m: &Metric<'_, '_>,
        name: &str,
        extra: Option<(&'static str, String)>,
        value: f64,
        start: Option<i64>,
        exemplars: &[Exemplar<'_>],
    ) -> Told<()> {
        let mut labels: Vec<Label<'_>> = Vec::with_capacity(m.labels.len() + 1);
        labels.push((Cow::Borrowed("__name__"), Cow::Borrowed(name)));
        labels.extend(m.labels[1..].iter().map(|(n, v)| (Cow::Borrowed(&**n), Cow::Borrowed(&**v))));
        labels.extend(extra.map(|(n, v)| (Cow::Borrowed(n), Cow::Owned(v))));
        self.give(m, &labels, Point::Value(float::normal(value)), start, exemplars)
    }

    fn give(
        &mut self,
        m: &Metric<'_, '_>,
        labels: &[Label<'_>],
        point: Point<'_>,
        start_ms: Option<i64>,
        exemplars: &[Exemplar<'_>],
    ) -> Told<()> {
        self.key.clear();
        for (name, value) in labels {
            for text in [name, value] {
                self.key.extend_from_slice(text.as_bytes());
                self.key.push(0xff);
            }
        }
        let sample = Sample {
            key: &self.key,
            labels,
            point,
            ts_ms: m.ts_ms,
            start_ms: start_ms.filter(|ms| *ms != 0),
            exemplars,
            family: Some(m.family),
        };
        (self.take)(&sample).map_err(|e| {
            self.stopped = Some(e);
            stop()
        })
    }
}
