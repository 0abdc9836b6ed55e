use super::*;
use crate::model::time::{NANOS_PER_DAY, NANOS_PER_HOUR, NANOS_PER_MILLI, NANOS_PER_SECOND};

const MIB: u64 = 1 << 20;
/// Midnight of some day.
const DAY: i64 = 20_000;
const HOUR: i64 = DAY * 24;
const START: i64 = DAY * NANOS_PER_DAY;

/// A part written at `written` (ns).
fn part(bucket: Bucket, level: u8, size: u64, order: i64, written: i64) -> Arc<PartEntry> {
    let (min, max) = (Timestamp(bucket.end().nanos() - NANOS_PER_HOUR), Timestamp(bucket.end().nanos() - 1));
    let mut p = PartEntry::for_test(bucket, size, level, order, min, max);
    Arc::get_mut(&mut p).unwrap().modification_time = written / NANOS_PER_MILLI;
    p
}

/// Parts of the first hour of the day from (level, MiB), in commit order, written a second apart.
fn hour(parts: &[(u8, u64)]) -> Vec<Arc<PartEntry>> {
    let at = |i: usize| START + i as i64 * NANOS_PER_SECOND;
    parts.iter().enumerate().map(|(i, (l, s))| part(Bucket::Hour(HOUR), *l, s * MIB, i as i64 + 1, at(i))).collect()
}

/// Orders of the inputs of each job, and level.
fn shape(jobs: &[Job]) -> Vec<(Vec<i64>, u8)> {
    jobs.iter().map(|j| (j.inputs.iter().map(|p| p.order).collect(), j.level)).collect()
}

fn limits() -> Limits {
    // Days never count as small, so that hours are looked at alone.
    Limits { day_bytes_max: 0, ..Limits::default() }
}

const OPEN: i64 = START + NANOS_PER_HOUR / 2;
const CLOSED: i64 = START + 2 * NANOS_PER_HOUR;

#[test]
fn hours_give_the_plans_expected() {
    let l0 = |n: usize| vec![(0, 1); n];
    let after = |first: &[(u8, u64)], n: usize| [first, &l0(n)].concat();
    let range = |a: i64, b: i64| (a..=b).collect::<Vec<i64>>();
    type Case = (&'static str, Vec<(u8, u64)>, i64, Vec<(Vec<i64>, u8)>);
    let cases: Vec<Case> = vec![
        ("one part is left alone", l0(1), CLOSED, vec![]),
        ("an open hour gathers", l0(7), OPEN, vec![]),
        ("eight flushes of an open hour merge", l0(8), OPEN, vec![(range(1, 8), 1)]),
        ("a large earlier merge is left out", after(&[(1, 8)], 8), OPEN, vec![(range(2, 9), 1)]),
        ("equal merges merge again", vec![(1, 8); 8], OPEN, vec![(range(1, 8), 1)]),
        ("odd sizes do not pile up", [vec![(0, 9)], l0(7)].concat(), OPEN, vec![(range(1, 8), 1)]),
        ("a closed hour becomes one part", after(&[(1, 8)], 3), CLOSED, vec![(range(1, 4), 2)]),
        ("a closed hour of one part is done", vec![(2, 9)], CLOSED, vec![]),
        ("a little late data waits", vec![(2, 200), (0, 1)], CLOSED, vec![]),
        ("late data merges among itself", vec![(2, 200), (0, 1), (0, 1)], CLOSED, vec![(vec![2, 3], 2)]),
        ("enough late data is merged in", vec![(2, 200), (2, 49), (0, 1)], CLOSED, vec![(range(1, 3), 2)]),
        ("full parts stay", vec![(2, 500), (2, 300), (0, 90), (0, 90)], CLOSED, vec![(vec![3, 4], 2)]),
        ("inputs are bounded, oldest first", l0(100), CLOSED, vec![(range(1, 64), 2)]),
    ];
    for (claim, parts, now, expected) in cases {
        assert_eq!(shape(&plan(&hour(&parts), Timestamp(now), &limits())), expected, "{claim}");
    }
}

#[test]
fn an_import_is_merged_once_it_pauses() {
    let parts = hour(&[(0, 1); 10]);
    let last = START + 9 * NANOS_PER_SECOND;
    // The data is two days old when it comes: the hour is closed from the start.
    let old =
        |p: &Arc<PartEntry>| part(Bucket::Hour(HOUR - 48), 0, p.size, p.order, p.modification_time * NANOS_PER_MILLI);
    let parts: Vec<Arc<PartEntry>> = parts.iter().map(old).collect();
    assert!(plan(&parts, Timestamp(last + NANOS_PER_SECOND), &limits()).is_empty());
    let jobs = plan(&parts, Timestamp(last + 2 * NANOS_PER_SECOND), &limits());
    assert_eq!(shape(&jobs), [((1..=10).collect(), 2)]);
    // A clock that went back must not stop it.
    assert_eq!(plan(&parts, Timestamp(last - NANOS_PER_DAY / 2), &limits()).len(), 1);
}

#[test]
fn an_endless_import_does_not_pile_up() {
    let at = |i: i64| START + i * NANOS_PER_SECOND;
    let parts: Vec<Arc<PartEntry>> = (0..32).map(|i| part(Bucket::Hour(HOUR - 48), 0, MIB, i, at(i))).collect();
    assert_eq!(plan(&parts, Timestamp(at(31)), &limits())[0].inputs.len(), 32);
}

#[test]
fn a_part_of_the_whole_day_keeps_its_place_in_commit_order() {
    let mut parts = hour(&[(0, 1); 5]);
    parts.push(part(Bucket::Day(DAY), 0, MIB, 3, START));
    parts.sort_by_key(|p| p.order);
    let jobs = plan(&parts, Timestamp(CLOSED), &limits());
    assert_eq!(shape(&jobs), [(vec![1, 2, 3], 2), (vec![4, 5], 2)]);
    assert_eq!(jobs.iter().map(|j| j.order).collect::<Vec<_>>(), [3, 5]);
    assert!(jobs.iter().all(|j| j.bucket == Bucket::Hour(HOUR)));
}

#[test]
fn a_small_closed_day_becomes_one_part() {
    let parts: Vec<Arc<PartEntry>> =
        (0..24).map(|h| part(Bucket::Hour(HOUR + h), 2, MIB, h + 1, START + h * NANOS_PER_HOUR)).collect();
    let end = START + NANOS_PER_DAY;
    assert!(plan(&parts, Timestamp(end), &Limits::default()).is_empty());
    let jobs = plan(&parts, Timestamp(end + NANOS_PER_HOUR), &Limits::default());
    assert_eq!((jobs.len(), jobs[0].inputs.len(), jobs[0].bucket), (1, 24, Bucket::Day(DAY)));
    let large: Vec<Arc<PartEntry>> =
        (0..24).map(|h| part(Bucket::Hour(HOUR + h), 2, 10 * MIB, h + 1, START + h * NANOS_PER_HOUR)).collect();
    assert!(plan(&large, Timestamp(end + NANOS_PER_HOUR), &Limits::default()).is_empty());
}

/// Runs flushes and every planned merge; gives (most live parts at any time, live at the end, bytes written / flushed).
fn simulate(flush_every: i64, size: u64, lag: i64, hours: i64) -> (usize, usize, f64) {
    let limits = Limits::default();
    let (mut live, mut order): (Vec<Arc<PartEntry>>, i64) = (Vec::new(), 0);
    let (mut peak, mut flushed, mut written) = (0, 0u64, 0u64);
    let end = hours * NANOS_PER_HOUR;
    let mut t = 0;
    // Three hours more without flushes, for what waits.
    while t < end + 3 * NANOS_PER_HOUR {
        let now = START + t;
        if t < end {
            order += 1;
            let bucket = Bucket::Hour(Timestamp(now - lag).hour());
            live.push(part(bucket, 0, size, order, now));
            flushed += size;
            written += size;
        }
        loop {
            let jobs = plan(&live, Timestamp(now), &limits);
            for job in &jobs {
                let gone: Vec<*const PartEntry> = job.inputs.iter().map(Arc::as_ptr).collect();
                assert!(job.inputs.len() >= 2 && job.inputs.len() <= limits.inputs_max);
                let before = live.len();
                live.retain(|p| !gone.contains(&Arc::as_ptr(p)));
                assert_eq!(before - live.len(), gone.len(), "a part is in two jobs");
                let bytes: u64 = job.inputs.iter().map(|p| p.size).sum();
                written += bytes;
                let mut left = bytes;
                while left > 0 {
                    let n = left.min(limits.part_bytes_max);
                    live.push(part(job.bucket, job.level, n, job.order, now));
                    left -= n;
                }
            }
            live.sort_by_key(|p| p.order);
            if jobs.is_empty() {
                break;
            }
        }
        peak = peak.max(live.len());
        t += flush_every;
    }
    (peak, live.len(), written as f64 / flushed as f64)
}

#[test]
fn a_day_of_flushes_leaves_few_parts_and_writes_few_times() {
    let second = NANOS_PER_SECOND;
    for (claim, every, size, lag, hours, parts_max, writes_max) in [
        ("small, each minute", 60 * second, MIB / 64, 0, 48, 45, 5.0),
        ("idle, each five minutes", 300 * second, 4 << 10, 0, 24 * 7, 45, 5.0),
        ("busy, each ten seconds", 10 * second, 8 * MIB, 0, 6, 90, 5.0),
        ("all an hour late", 60 * second, MIB, 90 * 60 * second, 24, 60, 7.0),
        ("all three days late", 60 * second, MIB, 72 * 3600 * second, 24, 60, 7.0),
    ] {
        let (peak, end, writes) = simulate(every, size, lag, hours);
        println!(
            "{claim}: {hours} h, {peak} live parts at most, {end} at the end, each byte written {writes:.2} times"
        );
        assert!(peak <= parts_max, "{claim}: {peak} live parts");
        assert!(writes <= writes_max, "{claim}: written {writes:.2} times");
    }
}
