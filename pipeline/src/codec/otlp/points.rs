//! Which metric points are valid, and what names the stream they belong to.

use opentelemetry_proto::tonic::{
    common::v1::KeyValue,
    metrics::v1::{ExponentialHistogramDataPoint, HistogramDataPoint, NumberDataPoint},
};

use super::delta::{DeltaPoint, StreamKey};
use crate::codec::Reason;

/// Bit of a point's flags: it says that there is no value any more.
pub const NO_RECORDED_VALUE: u32 = 1;

type Refusal = (Reason, String);

/// A point with what the conversion of deltas asks beside its value.
pub trait Totalled: DeltaPoint {
    fn attributes(&self) -> &[KeyValue];
    fn flags(&self) -> u32;
    /// Whether it will be taken: what is refused must not count in a total.
    fn check(&self) -> Result<(), Refusal>;
}

impl Totalled for NumberDataPoint {
    fn attributes(&self) -> &[KeyValue] {
        &self.attributes
    }

    fn flags(&self) -> u32 {
        self.flags
    }

    fn check(&self) -> Result<(), Refusal> {
        match self.value {
            Some(_) => Ok(()),
            None => Err((Reason::InvalidMetric, "a delta point has no value".to_owned())),
        }
    }
}

impl Totalled for HistogramDataPoint {
    fn attributes(&self) -> &[KeyValue] {
        &self.attributes
    }

    fn flags(&self) -> u32 {
        self.flags
    }

    fn check(&self) -> Result<(), Refusal> {
        check_bounds(self)
    }
}

impl Totalled for ExponentialHistogramDataPoint {
    fn attributes(&self) -> &[KeyValue] {
        &self.attributes
    }

    fn flags(&self) -> u32 {
        self.flags
    }

    fn check(&self) -> Result<(), Refusal> {
        check_scale(self)
    }
}

/// Bounds must rise and fit the buckets.
pub fn check_bounds(p: &HistogramDataPoint) -> Result<(), Refusal> {
    let fits = p.bucket_counts.is_empty() && p.explicit_bounds.is_empty()
        || p.bucket_counts.len() == p.explicit_bounds.len() + 1;
    let rising = p.explicit_bounds.windows(2).all(|w| w[0] < w[1]);
    if !fits || !rising || p.explicit_bounds.iter().any(|b| b.is_nan()) {
        return Err((Reason::InvalidMetric, "a histogram point has bounds that do not fit its buckets".to_owned()));
    }
    Ok(())
}

pub fn check_scale(p: &ExponentialHistogramDataPoint) -> Result<(), Refusal> {
    if p.scale < -4 {
        return Err((Reason::InvalidMetric, format!("an exponential histogram has scale {}, below -4", p.scale)));
    }
    Ok(())
}

/// What names a delta stream; lengths keep the parts apart.
pub fn stream_key(parts: &[&str]) -> StreamKey {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.digest128()
}
