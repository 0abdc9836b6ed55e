//! A request to batches.

mod fast;

use std::collections::HashMap;

use storage::model::{MetricBatchBuilder, batch::SeriesMeta, json::write_string};

use super::{
    Families, Family, Version,
    families::HELP_BYTES_MAX,
    histogram::{self, GAPS_MAX, varint},
    known::{Declared, KnownSeries, LabelsHash, Look, Series, day_of},
    type_name,
};
use crate::{
    Data,
    codec::{
        Decoded, Limits, Malformed, Reason,
        limits::TimeBounds,
        otlp::wire::{Reader, Wire},
        outcome::{MESSAGE_BYTES_MAX, clip},
        stream,
    },
};

/// Symbols of a 2.0 request: labels, helps and units of all its series.
const SYMBOLS_MAX: usize = 1 << 20;

/// Families told in one request.
const FAMILIES_TOLD_MAX: usize = 100_000;

/// Characters of an exemplar's labels (OpenMetrics).
const EXEMPLAR_CHARS_MAX: usize = 128;

/// Bytes of a series' labels as a refusal quotes them.
const SHOWN_BYTES_MAX: usize = 512;

/// A decoded request.
#[derive(Debug, Default)]
pub struct Write {
    /// `accepted`: samples, histograms and exemplars together.
    pub decoded: Decoded,
    pub samples: u64,
    pub histograms: u64,
    pub exemplars: u64,
    /// The first refusal that the sender is told of (400); the others were taken. `None`: all is well, or only that was
    /// refused which 1.0 drops silently (series without a name, exemplars).
    pub error: Option<String>,
    /// Families told by the request (1.0), for [`Families::learn`].
    pub told: Vec<(String, Family)>,
    /// Series that came with their labels, for [`KnownSeries::learn`].
    pub declared: Declared,
    /// Samples of known series, which have no row among the series.
    pub of_known: u64,
}

/// Who hears of a refusal beside our own counters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tell {
    Sender,
    Nobody,
}

/// What the labels pass over a series found.
struct Head<'a> {
    /// From the first field that is no label.
    rest: Reader<'a>,
    /// Samples and histograms.
    points: u64,
    metadata: Option<&'a [u8]>,
    /// Start of the whole series, as early 2.0 senders have it, ms.
    created: Option<i64>,
}

struct Decoder<'a, 'l> {
    version: Version,
    limits: &'l Limits,
    /// Milliseconds, both ends taken.
    oldest: i64,
    newest: i64,
    known: &'l Families,
    own: HashMap<&'l str, &'l Family>,
    symbols: Vec<Option<&'a str>>,
    /// Hashes of the symbols' bytes, where they were asked for.
    symbol_hashes: Vec<Option<LabelsHash>>,
    labels: Vec<(&'a str, &'a str)>,
    refs: Vec<u32>,
    /// Canonical JSON of the series' labels.
    text: String,
    rows: MetricBatchBuilder,
    gaps: usize,
    met: u64,
    /// Known series, the place of the one that is likely to come, and what will be known of the present one, but for its id.
    store_has: Option<Look<'l>>,
    next: usize,
    present: Option<Series>,
    /// Of a known series.
    samples: Vec<Sample>,
    /// What stands for the labels of a 2.0 series.
    label_hashes: Vec<u8>,
    out: Write,
}

type Refusal = (Reason, String);

/// Time, ms, value, and start, ms (0: none).
type Sample = (i64, f64, i64);

/// `body`: the message. `now`: nanoseconds since the epoch. `known`: families told by earlier requests (1.0).
pub fn decode(
    body: &[u8],
    version: Version,
    limits: &Limits,
    now: i64,
    known: &Families,
) -> Result<Write, Malformed> {
    decode_known(body, version, limits, now, known, None)
}

/// As [`decode`], for what goes straight into the store: samples of series in `store_has` come without their labels.
pub fn decode_known(
    body: &[u8],
    version: Version,
    limits: &Limits,
    now: i64,
    known: &Families,
    store_has: Option<&KnownSeries>,
) -> Result<Write, Malformed> {
    let (mut told, mut symbols, mut count) = (Vec::new(), Vec::new(), 0);
    let mut r = Reader::new(body);
    while let Some((number, wire)) = r.field()? {
        match (version, number) {
            (Version::V1, 1) | (Version::V2, 5) => count += 1,
            (Version::V1, 3) if told.len() < FAMILIES_TOLD_MAX => told.extend(family(wire.bytes()?)?),
            (Version::V2, 4) => {
                if symbols.len() == SYMBOLS_MAX {
                    return Err(Malformed(format!("request has more than {SYMBOLS_MAX} symbols; send fewer series")));
                }
                symbols.push(std::str::from_utf8(wire.bytes()?).ok());
            }
            _ => {}
        }
    }
    if version == Version::V2 && symbols.first().is_some_and(|s| *s != Some("")) {
        return Err(Malformed("the first symbol is not the empty string".to_owned()));
    }
    let bounds = TimeBounds::new(limits, now);
    let store_has = store_has.map(KnownSeries::look);
    let declared = store_has.as_ref().map(Look::declares).unwrap_or_default();
    let mut d = Decoder {
        version,
        limits,
        // All that nanoseconds can say.
        oldest: bounds.oldest.div_euclid(1_000_000) + i64::from(bounds.oldest.rem_euclid(1_000_000) > 0),
        newest: bounds.newest.div_euclid(1_000_000),
        known,
        own: told.iter().map(|(n, f): &(String, Family)| (n.as_str(), f)).collect(),
        symbol_hashes: vec![None; symbols.len()],
        symbols,
        labels: Vec::new(),
        refs: Vec::new(),
        text: String::new(),
        rows: MetricBatchBuilder::new(),
        gaps: GAPS_MAX,
        met: 0,
        store_has,
        next: 0,
        present: None,
        samples: Vec::new(),
        label_hashes: Vec::new(),
        out: Write { declared, ..Write::default() },
    };
    // Mostly one sample a series; a field that is no series takes two bytes at least.
    d.rows.reserve_samples(count.min(limits.batch_rows_max));
    let series = if version == Version::V1 { 1 } else { 5 };
    let mut r = Reader::new(body);
    while let Some((number, wire)) = r.field()? {
        if number == series {
            d.series(wire.bytes()?)?;
        }
    }
    d.flush();
    let mut out = std::mem::take(&mut d.out);
    drop(d);
    out.decoded.accepted = out.samples + out.histograms + out.exemplars;
    out.told = told;
    Ok(out)
}

/// A 1.0 `MetricMetadata`; `None` when it names nothing or is not text.
fn family(bytes: &[u8]) -> Result<Option<(String, Family)>, Malformed> {
    let (mut kind, mut name, mut help, mut unit) = (0, &[] as &[u8], &[] as &[u8], &[] as &[u8]);
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => kind = wire.varint()?,
            2 => name = wire.bytes()?,
            4 => help = wire.bytes()?,
            5 => unit = wire.bytes()?,
            _ => {}
        }
    }
    let text = |b| std::str::from_utf8(b).ok().filter(|t: &&str| !t.is_empty());
    Ok(text(name).map(|name| {
        let family = Family {
            metric_type: type_name(kind),
            unit: text(unit).map(str::to_owned),
            help: text(help).map(|h| clip(h.to_owned(), HELP_BYTES_MAX)),
        };
        (name.to_owned(), family)
    }))
}

impl<'a> Decoder<'a, '_> {
    fn refuse(&mut self, tell: Tell, n: u64, (reason, message): Refusal) {
        let message = clip(message, MESSAGE_BYTES_MAX);
        if tell == Tell::Sender && self.out.error.is_none() {
            self.out.error = Some(message.clone());
        }
        self.out.decoded.rejected.add_many(reason, n, self.met, || message);
    }

    /// The labels as a refusal shows them.
    fn shown(&self) -> String {
        let mut out = String::from("{");
        for (name, value) in &self.labels {
            if out.len() > SHOWN_BYTES_MAX {
                break;
            }
            if out.len() > 1 {
                out.push_str(", ");
            }
            out.push_str(name);
            out.push('=');
            write_string(&mut out, value);
        }
        out.push('}');
        clip(out, SHOWN_BYTES_MAX)
    }

    fn series(&mut self, bytes: &'a [u8]) -> Result<(), Malformed> {
        self.present = None;
        let known = match (self.store_has.is_some(), self.version) {
            (false, _) => false,
            (true, Version::V1) => self.known_v1(bytes)?,
            (true, Version::V2) => self.known_v2(bytes)?,
        };
        if known {
            return Ok(());
        }
        let (head, broken) = self.head(bytes)?;
        let checked = match broken {
            Some(refusal) => Err(refusal),
            None => self.check_labels(),
        };
        if let Err(refusal) = checked {
            // What 1.0 senders have always got away with; too much is told.
            let silent =
                self.version == Version::V1 && matches!(refusal.0, Reason::InvalidLabels | Reason::InvalidUtf8);
            self.met += head.points;
            let tell = if silent { Tell::Nobody } else { Tell::Sender };
            self.refuse(tell, head.points, refusal);
            return Ok(());
        }
        if head.points == 0 && self.version == Version::V2 {
            let message = format!("series {} has neither samples nor histograms", self.shown());
            self.refuse(Tell::Sender, 0, (Reason::InvalidMetric, message));
            return Ok(());
        }
        self.canonical();
        self.points(&head)
    }

    /// First pass: labels into `self.labels`, and what else there is.
    fn head(&mut self, bytes: &'a [u8]) -> Result<(Head<'a>, Option<Refusal>), Malformed> {
        self.labels.clear();
        self.refs.clear();
        let mut r = Reader::new(bytes);
        let mut head = Head { rest: r, points: 0, metadata: None, created: None };
        let (mut broken, mut in_front) = (None, true);
        loop {
            let before = r;
            let Some((number, wire)) = r.field()? else { break };
            if number != 1 && std::mem::take(&mut in_front) {
                head.rest = before;
            } else if number == 1 && !in_front {
                // Labels that the hash is not of.
                self.present = None;
            }
            match (self.version, number) {
                (Version::V1, 1) => {
                    let pair = label(wire.bytes()?)?;
                    if self.labels.len() >= self.limits.series_labels_max {
                        broken = broken.or_else(|| Some(self.too_many_labels()));
                    } else if let Some(pair) = pair {
                        self.labels.push(pair);
                    } else {
                        let message = "a label is not valid UTF-8".to_owned();
                        broken = broken.or(Some((Reason::InvalidUtf8, message)));
                    }
                }
                (Version::V2, 1) => self.refs(wire)?,
                (Version::V1, 2 | 4) | (Version::V2, 2 | 3) => head.points += 1,
                (Version::V2, 5) => head.metadata = Some(wire.bytes()?),
                (Version::V2, 6) => head.created = Some(wire.varint()? as i64).filter(|ms| *ms != 0),
                _ => {}
            }
        }
        if in_front {
            head.rest = r;
        }
        if self.version == Version::V2 {
            broken = self.labels_of_refs().err();
        }
        Ok((head, broken))
    }

    #[cold]
    fn too_many_labels(&self) -> Refusal {
        let limit = self.limits.series_labels_max;
        (Reason::TooManyLabels, format!("series {} has more than {limit} labels", self.shown()))
    }

    fn refs(&mut self, wire: Wire<'a>) -> Result<(), Malformed> {
        // Twice the labels, and some to see that there are too many.
        let most = self.limits.series_labels_max * 2 + 2;
        let mut push = |v: u64| {
            if self.refs.len() < most {
                self.refs.push(u32::try_from(v).unwrap_or(u32::MAX));
            }
        };
        match wire {
            Wire::Bytes(mut packed) => {
                while !packed.is_empty() {
                    let (v, rest) = varint(packed)?;
                    push(v);
                    packed = rest;
                }
            }
            other => push(other.varint()?),
        }
        Ok(())
    }

    fn symbol(&self, at: u32) -> Result<&'a str, Refusal> {
        match self.symbols.get(at as usize) {
            Some(Some(text)) => Ok(text),
            Some(None) => Err((Reason::InvalidUtf8, format!("symbol {at} is not valid UTF-8"))),
            None => {
                let n = self.symbols.len();
                Err((Reason::InvalidLabels, format!("a label refers to symbol {at} of {n}")))
            }
        }
    }

    fn labels_of_refs(&mut self) -> Result<(), Refusal> {
        self.labels.clear();
        let (pairs, odd) = self.refs.as_chunks::<2>();
        if !odd.is_empty() {
            return Err((Reason::InvalidLabels, "a series has an odd number of label references".to_owned()));
        }
        for [name, value] in pairs {
            let pair = (self.symbol(*name)?, self.symbol(*value)?);
            self.labels.push(pair);
        }
        if self.labels.len() > self.limits.series_labels_max {
            return Err(self.too_many_labels());
        }
        Ok(())
    }

    /// Sorts the labels, drops those without a value, and refuses what makes no series.
    fn check_labels(&mut self) -> Result<(), Refusal> {
        if !self.labels.windows(2).all(|w| w[0].0 < w[1].0) {
            self.labels.sort_by_key(|(name, _)| *name);
            if let Some(w) = self.labels.windows(2).find(|w| w[0].0 == w[1].0) {
                let message = format!(
                    "label name {:?} is there twice in series {}",
                    clip(w[0].0.to_owned(), SHOWN_BYTES_MAX),
                    self.shown()
                );
                return Err((Reason::InvalidLabels, message));
            }
        }
        self.labels.retain(|(_, value)| !value.is_empty());
        let (names, values) = (self.limits.label_name_bytes_max, self.limits.series_value_bytes_max);
        let mut named = false;
        for (name, value) in &self.labels {
            if name.is_empty() {
                return Err((Reason::InvalidLabels, format!("series {} has a label without a name", self.shown())));
            }
            if name.len() > names || value.len() > values {
                let (what, limit) = if name.len() > names { ("name", names) } else { ("value", values) };
                let message = format!("series {} has a label {what} longer than {limit} bytes", self.shown());
                return Err((Reason::LabelTooLong, message));
            }
            named |= *name == "__name__";
        }
        if named {
            Ok(())
        } else {
            Err((Reason::InvalidLabels, format!("series {} has no metric name", self.shown())))
        }
    }

    /// Writes the labels' canonical JSON, from which the id follows.
    fn canonical(&mut self) {
        self.text.clear();
        self.text.push('{');
        for (i, (name, value)) in self.labels.iter().enumerate() {
            if i > 0 {
                self.text.push(',');
            }
            write_string(&mut self.text, name);
            self.text.push(':');
            write_string(&mut self.text, value);
        }
        self.text.push('}');
    }

    /// Second pass: the points.
    fn points(&mut self, head: &Head<'a>) -> Result<(), Malformed> {
        let mut id = None;
        let mut r = head.rest;
        while let Some((number, wire)) = r.field()? {
            match (self.version, number) {
                (_, 2) => {
                    self.met += 1;
                    self.sample(wire.bytes()?, head, &mut id)?;
                }
                (Version::V1, 4) | (Version::V2, 3) => {
                    self.met += 1;
                    self.histogram(wire.bytes()?, head, &mut id)?;
                }
                (Version::V1, 3) | (Version::V2, 4) => self.exemplar(wire.bytes()?, head, &mut id)?,
                _ => continue,
            }
            if self.rows.len() >= self.limits.batch_rows_max {
                self.flush();
                id = None;
            }
        }
        if self.rows.label_bytes() >= self.limits.batch_bytes_max {
            self.flush();
        }
        Ok(())
    }

    fn sample(&mut self, bytes: &[u8], head: &Head<'a>, id: &mut Option<i64>) -> Result<(), Malformed> {
        let (ms, value, start) = point(bytes, self.version == Version::V2)?;
        if let Err(refusal) = self.check_point(ms) {
            self.refuse(Tell::Sender, 1, refusal);
            return Ok(());
        }
        if id.is_none()
            && let Some(present) = self.present.take()
        {
            // The day of its first sample; should others be of another day, the store has rows for both.
            let id = self.declared(head, id);
            self.out.declared.push(Series { id, ..present }, day_of(ms));
        }
        let id = self.declared(head, id);
        self.rows.sample(id, ms, Some(start).filter(|s| *s != 0).or(head.created), value);
        self.out.samples += 1;
        Ok(())
    }

    fn histogram(&mut self, bytes: &[u8], head: &Head<'a>, id: &mut Option<i64>) -> Result<(), Malformed> {
        let read = histogram::read(bytes, &mut self.gaps)?;
        let read = read.and_then(|h| self.check_point(h.ts_ms).map(|()| h));
        match read {
            Ok(h) => {
                let id = self.declared(head, id);
                let start = h.start_ms.filter(|_| self.version == Version::V2).or(head.created);
                self.rows.histogram(id, h.ts_ms, start, &h.row);
                self.out.histograms += 1;
            }
            Err((reason, message)) => {
                let message = format!("{message} (series {})", self.shown());
                self.refuse(Tell::Sender, 1, (reason, message));
            }
        }
        Ok(())
    }

    /// Whether a point may be taken: its time, and how many there were before.
    #[inline]
    fn check_point(&self, ms: i64) -> Result<(), Refusal> {
        if ms < self.oldest || ms > self.newest {
            return Err(self.out_of_bounds(ms));
        }
        if (self.out.samples + self.out.histograms) as usize >= self.limits.records_max {
            let limit = self.limits.records_max;
            return Err((
                Reason::TooManyRecords,
                format!("request has more than {limit} points; send fewer at once"),
            ));
        }
        Ok(())
    }

    #[cold]
    fn out_of_bounds(&self, ms: i64) -> Refusal {
        let shown = self.shown();
        if ms > self.newest {
            (Reason::TooFarAhead, format!("out of bounds: timestamp {ms} of series {shown} is too far in the future"))
        } else {
            (Reason::TooOld, format!("out of bounds: timestamp {ms} of series {shown} is older than is accepted"))
        }
    }

    /// The series' id, declared in the present batch.
    #[inline]
    fn declared(&mut self, head: &Head<'a>, id: &mut Option<i64>) -> i64 {
        *id.get_or_insert_with(|| {
            let get = |name: &str| self.labels.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
            let metric = get("__name__").unwrap_or_default();
            let help;
            let meta = match head.metadata {
                Some(bytes) => {
                    let (kind, told, unit) = self.metadata(bytes);
                    help = told.map(|h| clip(h.to_owned(), HELP_BYTES_MAX));
                    SeriesMeta { metric_type: kind, unit, help: help.as_deref(), origin: None }
                }
                None => {
                    let family = self.own.get(metric).copied().or_else(|| self.known.of(metric));
                    SeriesMeta {
                        metric_type: family.and_then(|f| f.metric_type),
                        unit: family.and_then(|f| f.unit.as_deref()),
                        help: family.and_then(|f| f.help.as_deref()),
                        origin: None,
                    }
                }
            };
            self.rows.series_of_json(&self.text, metric, get("job"), get("instance"), meta)
        })
    }

    /// Type, help and unit of a 2.0 series; what cannot be read is not told.
    fn metadata(&self, bytes: &[u8]) -> (Option<&'static str>, Option<&'a str>, Option<&'a str>) {
        let (mut kind, mut help, mut unit) = (None, None, None);
        let mut r = Reader::new(bytes);
        let text = |v: u64| self.symbol(u32::try_from(v).unwrap_or(u32::MAX)).ok().filter(|t| !t.is_empty());
        while let Ok(Some((number, wire))) = r.field() {
            match (number, wire) {
                (1, Wire::Varint(v)) => kind = type_name(v),
                (3, Wire::Varint(v)) => help = text(v),
                (4, Wire::Varint(v)) => unit = text(v),
                _ => {}
            }
        }
        (kind, help, unit)
    }

    fn exemplar(&mut self, bytes: &'a [u8], head: &Head<'a>, id: &mut Option<i64>) -> Result<(), Malformed> {
        let (mut value, mut ms) = (0.0, 0i64);
        let mut labels: Vec<(&str, &str)> = Vec::new();
        let mut bad = None;
        self.refs.clear();
        let mut r = Reader::new(bytes);
        while let Some((number, wire)) = r.field()? {
            match (self.version, number) {
                (Version::V1, 1) if labels.len() <= EXEMPLAR_CHARS_MAX => match label(wire.bytes()?)? {
                    Some(pair) => labels.push(pair),
                    None => bad = Some((Reason::InvalidUtf8, "an exemplar's label is not valid UTF-8".to_owned())),
                },
                (Version::V2, 1) => self.refs(wire)?,
                (_, 2) => value = f64::from_bits(wire.fixed64()?),
                (_, 3) => ms = wire.varint()? as i64,
                _ => {}
            }
        }
        let (pairs, _) = self.refs.as_chunks::<2>();
        for [name, value] in pairs {
            match (self.symbol(*name), self.symbol(*value)) {
                (Ok(n), Ok(v)) => labels.push((n, v)),
                (Err(e), _) | (_, Err(e)) => bad = Some(e),
            }
        }
        let checked = match bad {
            Some(refusal) => Err(refusal),
            None => self.check_exemplar(ms, &labels),
        };
        if let Err(refusal) = checked {
            self.refuse(Tell::Nobody, 1, refusal);
            return Ok(());
        }
        // What its column gives back exactly needs no second place.
        let (mut trace, mut span) = (None, None);
        labels.retain(|(name, value)| match *name {
            "trace_id" if stream::is_canonical_hex(value.as_bytes()) => {
                trace = stream::parse_hex::<16>(value.as_bytes());
                trace.is_none()
            }
            "span_id" if stream::is_canonical_hex(value.as_bytes()) => {
                span = stream::parse_hex::<8>(value.as_bytes());
                span.is_none()
            }
            _ => true,
        });
        let json = storage::model::Labels::from_pairs(labels.iter().map(|(n, v)| (*n, *v))).to_json();
        let id = self.declared(head, id);
        self.rows.exemplar(id, ms, value, trace.as_ref().map(|t| &t[..]), span.as_ref().map(|s| &s[..]), &json);
        self.out.exemplars += 1;
        Ok(())
    }

    fn check_exemplar(&self, ms: i64, labels: &[(&str, &str)]) -> Result<(), Refusal> {
        self.check_point(ms)?;
        if self.out.exemplars as usize >= self.limits.records_max {
            return Err((Reason::TooManyRecords, "request has too many exemplars".to_owned()));
        }
        let chars: usize = labels.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
        if chars > EXEMPLAR_CHARS_MAX {
            let message = format!("an exemplar's labels have {chars} characters, more than {EXEMPLAR_CHARS_MAX}");
            return Err((Reason::LabelTooLong, message));
        }
        if labels.iter().any(|(n, _)| n.is_empty()) {
            return Err((Reason::InvalidLabels, "an exemplar has a label without a name".to_owned()));
        }
        Ok(())
    }

    fn flush(&mut self) {
        if !self.rows.is_empty() || self.rows.label_bytes() > 0 {
            self.out.decoded.batches.push(Data::Metrics(self.rows.finish()));
        }
    }
}

/// A `Sample`; its start only `with_start`.
#[inline]
fn point(bytes: &[u8], with_start: bool) -> Result<Sample, Malformed> {
    // As Prometheus writes it: a value, and a time of this century.
    if let [9, v0, v1, v2, v3, v4, v5, v6, v7, 16, t0, t1, t2, t3, t4, t5] = bytes
        && [t0, t1, t2, t3, t4].iter().all(|t| **t >= 0x80)
        && *t5 < 0x80
    {
        let time = [t0, t1, t2, t3, t4, t5].iter().rev().fold(0i64, |ms, t| ms << 7 | i64::from(**t & 0x7f));
        return Ok((time, f64::from_le_bytes([*v0, *v1, *v2, *v3, *v4, *v5, *v6, *v7]), 0));
    }
    let (mut value, mut ms, mut start) = (0.0, 0i64, 0i64);
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => value = f64::from_bits(wire.fixed64()?),
            2 => ms = wire.varint()? as i64,
            3 if with_start => start = wire.varint()? as i64,
            _ => {}
        }
    }
    Ok((ms, value, start))
}

/// Name and value of a 1.0 `Label`; `None` when either is not UTF-8.
#[inline]
fn label(bytes: &[u8]) -> Result<Option<(&str, &str)>, Malformed> {
    let (mut name, mut value): (&[u8], &[u8]) = (&[], &[]);
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => name = wire.bytes()?,
            2 => value = wire.bytes()?,
            _ => {}
        }
    }
    Ok(std::str::from_utf8(name).ok().zip(std::str::from_utf8(value).ok()))
}
