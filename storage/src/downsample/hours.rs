//! Which hours a part of aggregates holds and what they were made of: the tag `sightline.hours`, `hour:order:rules` with
//! commas between, decimal, decimal and hexadecimal. Merged parts of samples have `sightline.sample_hours` of the same form:
//! without it a merge would make their hours look like changed ones.

use std::{collections::BTreeMap, sync::Arc};

use super::hour_of;
use crate::{catalog::PartEntry, model::TimeRange};

const TAG_HOURS: &str = "sightline.hours";
pub(crate) const TAG_SAMPLE_HOURS: &str = "sightline.sample_hours";

/// What an hour was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    /// Greatest order of the parts of samples.
    pub order: i64,
    /// Fingerprint of the rules.
    pub rules: u64,
}

pub(super) type Hours = BTreeMap<i64, Made>;

pub(super) fn to_tag(hours: &Hours) -> (String, String) {
    let texts: Vec<String> = hours.iter().map(|(h, m)| format!("{h}:{}:{:x}", m.order, m.rules)).collect();
    (TAG_HOURS.to_owned(), texts.join(","))
}

/// The tag of a merged part of samples: the orders that `inputs` had, hour by hour.
pub(crate) fn tag_of_samples(inputs: &[Arc<PartEntry>]) -> (String, String) {
    let orders = of_samples(inputs, (i64::MIN, i64::MAX));
    let hours = orders.into_iter().map(|(hour, (order, _))| (hour, Made { order, rules: 0 })).collect();
    (TAG_SAMPLE_HOURS.to_owned(), to_tag(&hours).1)
}

/// Hours of one part; what cannot be read counts as not made.
pub(super) fn of_part(part: &PartEntry) -> Hours {
    part.tag(TAG_HOURS).map(read).unwrap_or_default()
}

fn read(tag: &str) -> Hours {
    let read = |text: &str| {
        let mut pieces = text.split(':');
        let hour = pieces.next()?.parse().ok()?;
        let order = pieces.next()?.parse().ok()?;
        let rules = u64::from_str_radix(pieces.next()?, 16).ok()?;
        Some((hour, Made { order, rules }))
    };
    tag.split(',').filter_map(read).collect()
}

/// Hours of parts of aggregates, older ones first: the later commit's counts.
pub(super) fn of_parts<'p>(parts: impl IntoIterator<Item = &'p Arc<PartEntry>>) -> Hours {
    let mut out = Hours::new();
    parts.into_iter().for_each(|p| out.extend(of_part(p)));
    out
}

/// The tag of a part that takes the place of `inputs` (older first), where those are of aggregates. `touched`: buckets of
/// this range have lost rows, so their hours count as not made.
pub(crate) fn tag_of(inputs: &[Arc<PartEntry>], touched: Option<TimeRange>) -> Option<(String, String)> {
    inputs.iter().any(|p| p.tag(TAG_HOURS).is_some()).then(|| {
        let mut hours = of_parts(inputs);
        if let Some(range) = touched {
            // Buckets go by their start here.
            let last = crate::model::Timestamp(range.end().nanos().saturating_sub(1)).hour();
            hours.retain(|h, _| *h < range.start().hour() || *h > last);
        }
        to_tag(&hours)
    })
}

/// Of each hour that samples may lie in: the greatest order of their parts, and when the newest was written (ms).
/// `within`: hours that are asked for, inclusive.
pub(super) fn of_samples(parts: &[Arc<PartEntry>], within: (i64, i64)) -> BTreeMap<i64, (i64, i64)> {
    let mut out: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for part in parts {
        let mut note = |hour: i64, order: i64| {
            let of = out.entry(hour).or_insert((i64::MIN, i64::MIN));
            *of = (of.0.max(order), of.1.max(part.modification_time));
        };
        let first = hour_of(part.min_ts.millis()).max(within.0);
        let last = hour_of(part.max_ts.millis()).min(within.1);
        match part.tag(TAG_SAMPLE_HOURS).map(read) {
            Some(hours) if first <= last => {
                hours.range(first..=last).for_each(|(hour, made)| note(*hour, made.order))
            }
            Some(_) => {}
            None => (first..=last).for_each(|hour| note(hour, part.order)),
        }
    }
    out
}
