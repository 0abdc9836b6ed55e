//! Event time: nanoseconds since the Unix epoch, and half-open ranges of it.

/// Nanoseconds since the Unix epoch (1677-09-21 to 2262-04-11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

pub const NANOS_PER_MILLI: i64 = 1_000_000;
pub const NANOS_PER_SECOND: i64 = 1_000_000_000;
pub const NANOS_PER_HOUR: i64 = 3_600 * NANOS_PER_SECOND;
pub const NANOS_PER_DAY: i64 = 24 * NANOS_PER_HOUR;
pub const MILLIS_PER_DAY: i64 = NANOS_PER_DAY / NANOS_PER_MILLI;

impl Timestamp {
    pub const MIN: Timestamp = Timestamp(i64::MIN);
    pub const MAX: Timestamp = Timestamp(i64::MAX);

    pub const fn from_nanos(nanos: i64) -> Self {
        Timestamp(nanos)
    }

    /// Saturates at the ends of the representable range.
    pub const fn from_millis(millis: i64) -> Self {
        Timestamp(millis.saturating_mul(NANOS_PER_MILLI))
    }

    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Rounds down, so that `from_millis(t.millis()) <= t`.
    pub const fn millis(self) -> i64 {
        self.0.div_euclid(NANOS_PER_MILLI)
    }

    /// Hours since the epoch, rounded down.
    pub const fn hour(self) -> i64 {
        self.0.div_euclid(NANOS_PER_HOUR)
    }

    /// Days since the epoch, rounded down.
    pub const fn day(self) -> i64 {
        self.0.div_euclid(NANOS_PER_DAY)
    }
}

/// Event time, half-open, nanoseconds since the Unix epoch. Invariant: `start < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    start: Timestamp,
    end: Timestamp,
}

impl TimeRange {
    /// All of representable time but its very last nanosecond.
    pub const ALL: TimeRange = TimeRange { start: Timestamp::MIN, end: Timestamp::MAX };

    /// `None` unless `start < end`.
    pub fn new(start: Timestamp, end: Timestamp) -> Option<Self> {
        (start < end).then_some(TimeRange { start, end })
    }

    pub const fn start(self) -> Timestamp {
        self.start
    }

    pub const fn end(self) -> Timestamp {
        self.end
    }

    pub fn contains(self, t: Timestamp) -> bool {
        self.start <= t && t < self.end
    }

    /// Whether any instant of the closed interval `[min, max]` lies in the range.
    pub fn overlaps(self, min: Timestamp, max: Timestamp) -> bool {
        min < self.end && self.start <= max
    }

    /// Whether the whole closed interval `[min, max]` lies in the range.
    pub fn covers(self, min: Timestamp, max: Timestamp) -> bool {
        self.start <= min && max < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_half_open_and_never_empty() {
        assert!(TimeRange::new(Timestamp(5), Timestamp(5)).is_none());
        let r = TimeRange::new(Timestamp(5), Timestamp(10)).unwrap();
        assert!(r.contains(Timestamp(5)) && !r.contains(Timestamp(10)));
        assert!(r.overlaps(Timestamp(9), Timestamp(20)) && !r.overlaps(Timestamp(10), Timestamp(20)));
        assert!(r.overlaps(Timestamp(0), Timestamp(5)) && !r.overlaps(Timestamp(0), Timestamp(4)));
    }

    #[test]
    fn negative_times_round_down() {
        assert_eq!(Timestamp(-1).millis(), -1);
        assert_eq!(Timestamp(-1).day(), -1);
    }
}
