//! Which parts to merge: a pure choice from the list of live parts and the time.
//!
//! Rows of a part lie in one bucket of event time: an hour, or a day where a flush was very wide or a day small.
//! Merges stay inside a bucket, but for small closed days, whose hours become one part.
//!
//! # Invariants
//! 1. The inputs of a job are consecutive in commit order among all parts that share their event time, so that the
//!    output, which takes the greatest `order` of its inputs, neither overtakes nor falls behind another part.
//! 2. In an open hour a merge makes of each input something at least [`Limits::gain`] times as large, so a byte is
//!    rewritten at most log_gain(hour / flush) times. A closed bucket's large part is rewritten only when what came late
//!    is at least 1/[`Limits::late_share`] of it.
//! 3. A part of half the greatest size and more is never rewritten.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    catalog::{Bucket, PartEntry},
    model::Timestamp,
};

#[derive(Clone, Debug)]
pub struct Limits {
    /// Parts of a bucket that are merged together while it still grows.
    pub open_parts: usize,
    /// The same for old data that is still coming in (an import), which would be merged once when it ends.
    pub import_parts: usize,
    /// Least growth of the largest input in a growing bucket.
    pub gain: u64,
    /// A closed bucket's largest part is rewritten when the others have 1/`late_share` of its bytes.
    pub late_share: u64,
    /// Bytes of a part; the merge starts another one there.
    pub part_bytes_max: u64,
    /// Inputs of one merge: each holds a row group in memory.
    pub inputs_max: usize,
    /// How long no flush must have come to a closed bucket: 1/32 of the time over which its flushes came, in these bounds.
    pub quiet_min: Duration,
    pub quiet_max: Duration,
    /// Closed days up to this size become one part.
    pub day_bytes_max: u64,
    /// How long after its end a day counts as closed.
    pub day_grace: Duration,
    /// Jobs of one plan; the next plan follows.
    pub jobs_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            open_parts: 8,
            import_parts: 32,
            gain: 4,
            late_share: 4,
            part_bytes_max: 512 << 20,
            inputs_max: 64,
            quiet_min: Duration::from_secs(2),
            quiet_max: Duration::from_secs(120),
            day_bytes_max: 128 << 20,
            day_grace: Duration::from_secs(3600),
            jobs_max: 8,
        }
    }
}

/// One merge: replaces `inputs` by parts of `bucket`.
#[derive(Clone, Debug)]
pub struct Job {
    /// At least two, older rows first.
    pub inputs: Vec<Arc<PartEntry>>,
    pub bucket: Bucket,
    /// 1 in an open hour, 2 in a closed bucket.
    pub level: u8,
    /// For [`crate::catalog::NewPart::order`].
    pub order: i64,
}

/// The merges worth doing now, urgent ones first; no part is in two. `parts`: the live parts of one table, older first
/// ([`crate::catalog::TableCatalog::live`]).
pub fn plan(parts: &[Arc<PartEntry>], now: Timestamp, limits: &Limits) -> Vec<Job> {
    let mut days: BTreeMap<i64, Vec<Arc<PartEntry>>> = BTreeMap::new();
    for p in parts {
        days.entry(p.day()).or_default().push(p.clone());
    }
    let mut jobs = Vec::new();
    // Newest first: that is where queries look and parts pile up.
    for (day, parts) in days.into_iter().rev() {
        if parts.len() < 2 {
            continue;
        }
        plan_day(day, &parts, now, limits, &mut jobs);
        if jobs.len() >= limits.jobs_max {
            break;
        }
    }
    jobs.sort_by_key(|j| j.level);
    jobs.truncate(limits.jobs_max);
    jobs
}

fn plan_day(day: i64, parts: &[Arc<PartEntry>], now: Timestamp, limits: &Limits, jobs: &mut Vec<Job>) {
    let grace = i64::try_from(limits.day_grace.as_nanos()).unwrap_or(i64::MAX);
    let closed = now.nanos() >= Bucket::Day(day).end().nanos().saturating_add(grace);
    let bytes: u64 = parts.iter().map(|p| p.size).sum();
    if closed && bytes <= limits.day_bytes_max {
        jobs.extend(closed_job(Bucket::Day(day), parts, now, limits));
        return;
    }
    let mut buckets: BTreeMap<Bucket, Vec<Arc<PartEntry>>> = BTreeMap::new();
    for p in parts {
        buckets.entry(p.bucket).or_default().push(p.clone());
    }
    for (bucket, own) in buckets.iter().rev() {
        if own.len() < 2 {
            continue;
        }
        let walls: Vec<i64> = match bucket {
            // A part of the whole day between two of the hour must stay between them.
            Bucket::Hour(_) => parts.iter().filter(|p| p.bucket == Bucket::Day(day)).map(|p| p.order).collect(),
            Bucket::Day(_) => parts.iter().filter(|p| matches!(p.bucket, Bucket::Hour(_))).map(|p| p.order).collect(),
        };
        for stretch in stretches(own, &walls, limits) {
            let job = if now < bucket.end() {
                growing_job(*bucket, stretch, limits.open_parts, 1, limits)
            } else {
                closed_job(*bucket, stretch, now, limits)
            };
            jobs.extend(job);
        }
    }
}

/// Runs of parts without a full part or a wall (the order of a part elsewhere) inside.
fn stretches<'a>(parts: &'a [Arc<PartEntry>], walls: &[i64], limits: &Limits) -> Vec<&'a [Arc<PartEntry>]> {
    let full = |p: &PartEntry| p.size >= limits.part_bytes_max / 2;
    // A part at a wall's own order is of the same commit and belongs before it.
    let side = |p: &PartEntry| walls.iter().filter(|w| p.order > **w).count();
    parts.chunk_by(|a, b| !full(a) && !full(b) && side(a) == side(b)).filter(|s| s.len() >= 2).collect()
}

/// The longest run of newest parts that is worth merging while more is coming.
fn growing_job(
    bucket: Bucket,
    parts: &[Arc<PartEntry>],
    parts_min: usize,
    level: u8,
    limits: &Limits,
) -> Option<Job> {
    let start = (0..=parts.len().checked_sub(parts_min)?).find(|i| {
        let tail = &parts[*i..];
        let total: u64 = tail.iter().map(|p| p.size).sum();
        largest(tail) <= total / limits.gain
    });
    // Sizes that differ wildly must not let parts pile up: past twice the count the newest go regardless of gain.
    let start = start.or_else(|| {
        let small = parts.len() - parts_min;
        (parts[small..].iter().all(|p| p.level == 0)).then_some(small)
    })?;
    Some(job(bucket, &parts[start..], level, limits))
}

/// A bucket whose time is over: one part, as soon as no more comes; later again when enough came late.
fn closed_job(bucket: Bucket, parts: &[Arc<PartEntry>], now: Timestamp, limits: &Limits) -> Option<Job> {
    if parts.len() < 2 {
        return None;
    }
    if !quiet(parts, now, limits) {
        return growing_job(bucket, parts, limits.import_parts, 1, limits);
    }
    if parts.iter().all(|p| p.level < 2) {
        return Some(job(bucket, parts, 2, limits));
    }
    let worth = (0..parts.len() - 1).find(|i| {
        let tail = &parts[*i..];
        let total: u64 = tail.iter().map(|p| p.size).sum();
        let large = largest(tail);
        (total - large).saturating_mul(limits.late_share) >= large
    });
    // A tail of two or more that does not weigh enough against the large part may still be merged in itself: the test
    // above finds that too. What remains is a single small part behind a large one.
    worth.filter(|i| parts.len() - i >= 2).map(|i| job(bucket, &parts[i..], 2, limits))
}

fn job(bucket: Bucket, parts: &[Arc<PartEntry>], level: u8, limits: &Limits) -> Job {
    // The oldest first: what is left over stays consecutive.
    let inputs = parts[..parts.len().min(limits.inputs_max)].to_vec();
    let first = inputs[0].bucket;
    let bucket = if inputs.iter().all(|p| p.bucket == first) { first } else { bucket };
    let order = inputs.iter().map(|p| p.order).max().unwrap_or(0);
    Job { inputs, bucket, level, order }
}

fn largest(parts: &[Arc<PartEntry>]) -> u64 {
    parts.iter().map(|p| p.size).max().unwrap_or(0)
}

/// Whether flushes into these parts have ceased for long enough, measured by how long they went on.
fn quiet(parts: &[Arc<PartEntry>], now: Timestamp, limits: &Limits) -> bool {
    let times = parts.iter().filter(|p| p.level == 0).map(|p| p.modification_time);
    let (Some(first), Some(last)) = (times.clone().min(), times.max()) else { return true };
    let span = Duration::from_millis(last.saturating_sub(first).unsigned_abs());
    let wait = (span / 32).clamp(limits.quiet_min, limits.quiet_max).as_millis();
    let since = now.millis().saturating_sub(last);
    // A file of the future: the clock went back, and waiting for it could take for ever.
    since < -3_600_000 || i128::from(since) >= wait as i128
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
