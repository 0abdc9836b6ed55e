//! A metrics request with texts that are not UTF-8, without the points and metrics that hold them.
//!
//! The metrics decoder reads whole requests, and one bad text spoils all of it. Only then is this walk made: over the
//! levels of the request, with a rebuilt copy of what is good. What is damaged otherwise stays malformed.

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    metrics::v1::{
        ExponentialHistogramDataPoint, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics,
        SummaryDataPoint,
    },
};
use prost::{DecodeError, Message};

use super::wire::{Reader, Wire, put_bytes, put_int};
use crate::codec::Malformed;

/// The request, and how many data points were left out.
pub fn salvage(body: &[u8]) -> Result<(ExportMetricsServiceRequest, u64), Malformed> {
    let mut lost = 0;
    let good = members(body, 1, &mut |resource| {
        let before = lost;
        let kept = members(resource, 2, &mut |scope| {
            let before_scope = lost;
            let kept = members(scope, 2, &mut |metric| clean_metric(metric, &mut lost))?;
            keep::<ScopeMetrics>(kept, before_scope + points(scope, 1)?, &mut lost)
        })?;
        keep::<ResourceMetrics>(kept, before + points(resource, 2)?, &mut lost)
    })?;
    Ok((ExportMetricsServiceRequest::decode(&good[..]).map_err(malformed)?, lost))
}

fn malformed(e: DecodeError) -> Malformed {
    Malformed(format!("invalid protobuf: {e}"))
}

/// Whether the only fault is a text that is not UTF-8.
pub fn is_text(e: &DecodeError) -> bool {
    e.to_string().contains("UTF-8")
}

/// A member as it may stay; `None` when it may not.
type Cleaned = Result<Option<Vec<u8>>, Malformed>;

/// A copy of a message whose members (field `number`) went through `clean`; `None` leaves one out.
fn members(message: &[u8], number: u32, clean: &mut dyn FnMut(&[u8]) -> Cleaned) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(message.len());
    let mut r = Reader::new(message);
    while let Some((n, wire)) = r.field()? {
        match wire {
            Wire::Bytes(b) if n == number => {
                if let Some(b) = clean(b)? {
                    put_bytes(&mut out, n, &b);
                }
            }
            Wire::Bytes(b) => put_bytes(&mut out, n, b),
            Wire::Varint(v) => put_int(&mut out, n, v),
            // No message above a point has such a field.
            Wire::Fixed64(_) | Wire::Fixed32(_) => {}
        }
    }
    Ok(out)
}

/// The message as it is, if it can be read now; else all its points are lost, which makes `lost_with` of them.
fn keep<M: Message + Default>(bytes: Vec<u8>, lost_with: u64, lost: &mut u64) -> Result<Option<Vec<u8>>, Malformed> {
    match M::decode(&bytes[..]) {
        Ok(_) => Ok(Some(bytes)),
        Err(e) if is_text(&e) => {
            *lost = lost_with;
            Ok(None)
        }
        Err(e) => Err(malformed(e)),
    }
}

fn clean_metric(metric: &[u8], lost: &mut u64) -> Result<Option<Vec<u8>>, Malformed> {
    if Metric::decode(metric).is_ok() {
        return Ok(Some(metric.to_vec()));
    }
    let all = points(metric, 0)?;
    let mut dropped = 0;
    let mut bytes = metric.to_vec();
    for kind in DATA {
        bytes = members(&bytes, kind, &mut |data| {
            members(data, 1, &mut |point| match point_fault(kind, point) {
                None => Ok(Some(point.to_vec())),
                Some(e) if is_text(&e) => {
                    dropped += 1;
                    Ok(None)
                }
                Some(e) => Err(malformed(e)),
            })
            .map(Some)
        })?;
    }
    match Metric::decode(&bytes[..]) {
        Ok(_) => {
            *lost += dropped;
            Ok(Some(bytes))
        }
        Err(e) if is_text(&e) => {
            *lost += all;
            Ok(None)
        }
        Err(e) => Err(malformed(e)),
    }
}

/// Fields of a metric that hold its points: gauge, sum, histogram, exponential histogram, summary.
const DATA: [u32; 5] = [5, 7, 9, 10, 11];

fn point_fault(kind: u32, point: &[u8]) -> Option<DecodeError> {
    match kind {
        5 | 7 => NumberDataPoint::decode(point).err(),
        9 => HistogramDataPoint::decode(point).err(),
        10 => ExponentialHistogramDataPoint::decode(point).err(),
        _ => SummaryDataPoint::decode(point).err(),
    }
}

/// Points of a metric (`levels` 0), of a scope's metrics (1) or of a resource's (2).
fn points(message: &[u8], levels: usize) -> Result<u64, Malformed> {
    let mut n = 0;
    let mut r = Reader::new(message);
    while let Some((number, wire)) = r.field()? {
        let Wire::Bytes(b) = wire else { continue };
        if levels > 0 && number == 2 {
            n += points(b, levels - 1)?;
        } else if levels == 0 && DATA.contains(&number) {
            let mut data = Reader::new(b);
            while let Some((number, _)) = data.field()? {
                n += u64::from(number == 1);
            }
        }
    }
    Ok(n)
}
