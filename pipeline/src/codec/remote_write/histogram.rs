//! Native histograms between the wire (spans, deltas) and a row (consecutive absolute counts).

use storage::model::batch::HistogramRow;

use crate::codec::{
    Malformed, Reason,
    otlp::wire::{Reader, Wire, put_bytes, put_int, put_varint},
};

/// Finest exponential schema that is stored; finer ones are merged down to it.
const SCHEMA_MAX: i32 = 8;
/// Finest exponential schema there is.
const SCHEMA_WIRE_MAX: i32 = 52;
const SCHEMA_MIN: i32 = -4;
/// Custom bucket bounds.
const SCHEMA_CUSTOM: i32 = -53;

/// Buckets of one side of a histogram with the empty ones between: more than any real one spans at schema 8.
const BUCKETS_MAX: usize = 65_536;

/// Empty buckets between sent ones that one request may cost.
pub const GAPS_MAX: usize = 4 << 20;

/// Runs of empty buckets at least this long end a span when written.
const GAP_WRITTEN: usize = 3;

pub type Refusal = (Reason, String);

/// As sent.
#[derive(Default)]
pub struct Sent {
    pub count_int: Option<u64>,
    pub count_float: Option<f64>,
    pub sum: f64,
    pub schema: i32,
    pub zero_threshold: f64,
    pub zero_int: Option<u64>,
    pub zero_float: Option<f64>,
    pub negative: Side,
    pub positive: Side,
    pub reset_hint: i32,
    pub timestamp: i64,
    pub start: i64,
    pub custom: Vec<f64>,
}

#[derive(Default)]
pub struct Side {
    pub spans: Vec<(i32, u32)>,
    pub deltas: Vec<i64>,
    pub counts: Vec<f64>,
}

/// A histogram with its time and start, ms.
pub struct Read {
    pub ts_ms: i64,
    pub start_ms: Option<i64>,
    pub row: HistogramRow,
}

/// Undoes zigzag.
fn sint(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

fn zigzag(v: i64) -> u64 {
    (v << 1 ^ v >> 63) as u64
}

pub fn sint32(wire: Wire<'_>) -> Result<i32, Malformed> {
    // Out of range is nonsense that validation refuses.
    Ok(i32::try_from(sint(wire.varint()?)).unwrap_or(i32::MIN))
}

fn double(wire: Wire<'_>) -> Result<f64, Malformed> {
    Ok(f64::from_bits(wire.fixed64()?))
}

/// A repeated sint64, packed or not.
pub fn deltas(out: &mut Vec<i64>, wire: Wire<'_>) -> Result<(), Malformed> {
    match wire {
        Wire::Bytes(mut packed) => {
            while !packed.is_empty() {
                let (v, rest) = varint(packed)?;
                out.push(sint(v));
                packed = rest;
            }
        }
        other => out.push(sint(other.varint()?)),
    }
    Ok(())
}

/// A repeated double, packed or not.
pub fn doubles(out: &mut Vec<f64>, wire: Wire<'_>) -> Result<(), Malformed> {
    match wire {
        Wire::Bytes(packed) => {
            let (values, rest) = packed.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(Malformed("invalid protobuf: packed doubles of a broken length".to_owned()));
            }
            out.extend(values.iter().map(|v| f64::from_le_bytes(*v)));
        }
        other => out.push(double(other)?),
    }
    Ok(())
}

/// A varint and what follows it.
pub fn varint(bytes: &[u8]) -> Result<(u64, &[u8]), Malformed> {
    let mut value = 0;
    for (i, b) in bytes.iter().enumerate().take(10) {
        value |= u64::from(b & 0x7f) << (7 * i);
        if *b < 0x80 {
            return Ok((value, &bytes[i + 1..]));
        }
    }
    Err(Malformed("invalid protobuf: message ends inside a field".to_owned()))
}

pub fn span(bytes: &[u8]) -> Result<(i32, u32), Malformed> {
    let (mut offset, mut length) = (0, 0);
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => offset = sint32(wire)?,
            2 => length = u32::try_from(wire.varint()?).unwrap_or(u32::MAX),
            _ => {}
        }
    }
    Ok((offset, length))
}

/// `gaps`: empty buckets that the request may still cost.
pub fn read(bytes: &[u8], gaps: &mut usize) -> Result<Result<Read, Refusal>, Malformed> {
    let mut h = Sent::default();
    let mut r = Reader::new(bytes);
    while let Some((number, wire)) = r.field()? {
        match number {
            1 => (h.count_int, h.count_float) = (Some(wire.varint()?), None),
            2 => (h.count_int, h.count_float) = (None, Some(double(wire)?)),
            3 => h.sum = double(wire)?,
            4 => h.schema = sint32(wire)?,
            5 => h.zero_threshold = double(wire)?,
            6 => (h.zero_int, h.zero_float) = (Some(wire.varint()?), None),
            7 => (h.zero_int, h.zero_float) = (None, Some(double(wire)?)),
            8 => h.negative.spans.push(span(wire.bytes()?)?),
            9 => deltas(&mut h.negative.deltas, wire)?,
            10 => doubles(&mut h.negative.counts, wire)?,
            11 => h.positive.spans.push(span(wire.bytes()?)?),
            12 => deltas(&mut h.positive.deltas, wire)?,
            13 => doubles(&mut h.positive.counts, wire)?,
            14 => h.reset_hint = i32::try_from(wire.varint()?).unwrap_or(0),
            15 => h.timestamp = wire.varint()? as i64,
            16 => doubles(&mut h.custom, wire)?,
            17 => h.start = wire.varint()? as i64,
            _ => {}
        }
    }
    Ok(check(h, gaps))
}

fn invalid(what: impl Into<String>) -> Refusal {
    (Reason::InvalidMetric, format!("invalid histogram: {}", what.into()))
}

pub fn check(h: Sent, gaps: &mut usize) -> Result<Read, Refusal> {
    let is_float = h.count_float.is_some();
    let custom = h.schema == SCHEMA_CUSTOM;
    if !custom && !(SCHEMA_MIN..=SCHEMA_WIRE_MAX).contains(&h.schema) {
        return Err(invalid(format!("schema {} is not one of -53, -4 to 52", h.schema)));
    }
    if h.zero_threshold.is_nan() || h.zero_threshold < 0.0 {
        return Err(invalid(format!("zero threshold {} is below zero", h.zero_threshold)));
    }
    let shift = if custom { 0 } else { (h.schema - SCHEMA_MAX).max(0) as u32 };
    let (positive_offset, positive_counts, positive) = side(&h.positive, is_float, shift, gaps)?;
    let (negative_offset, negative_counts, negative) = side(&h.negative, is_float, shift, gaps)?;
    let zero_count = if is_float { h.zero_float.unwrap_or(0.0) } else { h.zero_int.unwrap_or(0) as f64 };
    let count = h.count_float.unwrap_or(h.count_int.unwrap_or(0) as f64);
    if is_float && !(count >= 0.0 && zero_count >= 0.0) {
        return Err(invalid("a count is below zero"));
    }
    if !is_float {
        let total = positive.checked_add(negative).and_then(|t| t.checked_add(h.zero_int.unwrap_or(0)));
        let count = h.count_int.unwrap_or(0);
        // Observations that are NaN are counted and fall into no bucket; the sum is NaN then.
        let fits = total.is_some_and(|t| if h.sum.is_nan() { t <= count } else { t == count });
        if !fits {
            return Err(invalid(format!("buckets add up to {total:?}, the count is {count}")));
        }
    }
    if custom {
        check_custom(&h, positive_offset, positive_counts.len(), zero_count)?;
    } else if !h.custom.is_empty() {
        return Err(invalid("custom bounds with an exponential schema"));
    }
    let row = HistogramRow {
        schema: if custom { h.schema } else { h.schema.min(SCHEMA_MAX) },
        zero_threshold: h.zero_threshold,
        zero_count,
        count,
        sum: h.sum,
        min: None,
        max: None,
        positive_offset,
        positive_counts,
        negative_offset,
        negative_counts,
        custom_bounds: custom.then_some(h.custom),
        reset_hint: if (0..=3).contains(&h.reset_hint) { h.reset_hint } else { 0 },
        is_float,
    };
    Ok(Read { ts_ms: h.timestamp, start_ms: (h.start != 0).then_some(h.start), row })
}

fn check_custom(h: &Sent, offset: i32, buckets: usize, zero_count: f64) -> Result<(), Refusal> {
    if !h.negative.spans.is_empty() || zero_count != 0.0 || h.zero_threshold != 0.0 {
        return Err(invalid("custom bounds with negative or zero buckets"));
    }
    let rising = h.custom.windows(2).all(|w| w[0] < w[1]);
    if !rising || h.custom.iter().any(|b| b.is_nan()) || h.custom.last() == Some(&f64::INFINITY) {
        return Err(invalid("custom bounds do not rise, or end in +Inf"));
    }
    // One bucket more than bounds: the last is up to +Inf.
    let end = i64::from(offset) + buckets as i64;
    if buckets > 0 && (offset < 0 || end > h.custom.len() as i64 + 1) {
        return Err(invalid(format!("buckets up to {end} with {} custom bounds", h.custom.len())));
    }
    Ok(())
}

/// Consecutive absolute counts from an offset on, and their sum (of integers).
fn side(s: &Side, is_float: bool, shift: u32, gaps: &mut usize) -> Result<(i32, Vec<f64>, u64), Refusal> {
    let (mut counts, mut total) = (Vec::new(), 0u64);
    let counts: &[f64] = if is_float {
        if !s.counts.iter().all(|c| *c >= 0.0) {
            return Err(invalid("a bucket's count is below zero"));
        }
        &s.counts
    } else {
        let mut last = 0i64;
        counts.reserve_exact(s.deltas.len());
        for delta in &s.deltas {
            let count = last.checked_add(*delta).filter(|c| *c >= 0);
            last = count.ok_or_else(|| invalid("a bucket's count is below zero"))?;
            total = total.checked_add(last as u64).ok_or_else(|| invalid("bucket counts overflow"))?;
            counts.push(last as f64);
        }
        &counts
    };
    let sent: u64 = s.spans.iter().map(|(_, length)| u64::from(*length)).sum();
    if sent != counts.len() as u64 {
        return Err(invalid(format!("spans of {sent} buckets, but {} counts", counts.len())));
    }
    // First and last bucket, as sent.
    let (mut at, mut first, mut end) = (0i64, None, 0i64);
    for (i, (offset, length)) in s.spans.iter().enumerate() {
        if i > 0 && *offset < 0 {
            return Err(invalid("a span goes back"));
        }
        at += i64::from(*offset);
        if *length > 0 {
            first.get_or_insert(at);
            at += i64::from(*length);
            end = at;
        }
    }
    let Some(first) = first else { return Ok((0, Vec::new(), total)) };
    // Bucket i reaches up to base^i: merged down, ceil(i / 2^shift).
    let place = |index: i64| ((index - 1) >> shift.min(62)) + 1;
    let low = place(first);
    let buckets = usize::try_from(place(end - 1) - low + 1).unwrap_or(usize::MAX);
    let offset = i32::try_from(low).map_err(|_| invalid("a bucket's index is out of range"))?;
    let gap = buckets.saturating_sub(counts.len());
    if buckets > BUCKETS_MAX.max(counts.len()) || gap > *gaps {
        return Err(invalid(format!("{buckets} buckets with the empty ones between; send narrower histograms")));
    }
    *gaps -= gap;
    let mut out = vec![0.0; buckets];
    let (mut at, mut next) = (0i64, counts.iter());
    for (offset, length) in &s.spans {
        at += i64::from(*offset);
        for count in next.by_ref().take(*length as usize) {
            // Between the first and the last bucket by the loop above.
            out[(place(at) - low) as usize] += count;
            at += 1;
        }
    }
    Ok((offset, out, total))
}

fn put_double(out: &mut Vec<u8>, number: u32, value: f64) {
    put_varint(out, u64::from(number) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Appends the fields of a `Histogram`. `start_ms` is a field of 2.0 only.
pub fn write(out: &mut Vec<u8>, ts_ms: i64, start_ms: Option<i64>, h: &HistogramRow) {
    if h.is_float {
        put_double(out, 2, h.count);
    } else {
        put_int(out, 1, h.count as u64);
    }
    put_double(out, 3, h.sum);
    put_int(out, 4, zigzag(h.schema.into()));
    put_double(out, 5, h.zero_threshold);
    if h.is_float {
        put_double(out, 7, h.zero_count);
    } else {
        put_int(out, 6, h.zero_count as u64);
    }
    write_side(out, 8, h.negative_offset, &h.negative_counts, h.is_float);
    write_side(out, 11, h.positive_offset, &h.positive_counts, h.is_float);
    put_int(out, 14, h.reset_hint as u64);
    put_int(out, 15, ts_ms as u64);
    if let Some(bounds) = &h.custom_bounds {
        put_packed(out, 16, bounds);
    }
    if let Some(start) = start_ms {
        put_int(out, 17, start as u64);
    }
}

fn put_packed(out: &mut Vec<u8>, number: u32, values: &[f64]) {
    if !values.is_empty() {
        put_varint(out, u64::from(number) << 3 | 2);
        put_varint(out, values.len() as u64 * 8);
        values.iter().for_each(|v| out.extend_from_slice(&v.to_le_bytes()));
    }
}

/// Spans (field `number`) and deltas or counts (the two fields after it).
fn write_side(out: &mut Vec<u8>, number: u32, offset: i32, counts: &[f64], is_float: bool) {
    let mut kept = Vec::with_capacity(counts.len());
    let mut at = 0;
    // End of the span before, in bucket indexes; the first offset counts from zero.
    let mut end = 0i64;
    while let Some(skip) = counts[at..].iter().position(|c| *c != 0.0) {
        let from = at + skip;
        let mut to = from + 1;
        while to < counts.len() {
            let empty = counts[to..].iter().take_while(|c| **c == 0.0).count();
            if empty >= GAP_WRITTEN || to + empty == counts.len() {
                break;
            }
            to += empty + 1;
        }
        let start = i64::from(offset) + from as i64;
        let mut span = Vec::with_capacity(12);
        put_int(&mut span, 1, zigzag(start - end));
        put_int(&mut span, 2, (to - from) as u64);
        put_bytes(out, number, &span);
        kept.extend_from_slice(&counts[from..to]);
        end = start + (to - from) as i64;
        at = to;
    }
    if is_float {
        put_packed(out, number + 2, &kept);
    } else if !kept.is_empty() {
        let mut packed = Vec::with_capacity(kept.len() * 2);
        let mut last = 0i64;
        for count in &kept {
            let count = *count as i64;
            put_varint(&mut packed, zigzag(count.wrapping_sub(last)));
            last = count;
        }
        put_bytes(out, number + 1, &packed);
    }
}
