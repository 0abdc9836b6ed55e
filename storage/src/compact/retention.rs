//! Which parts are past their time: a pure choice.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    catalog::PartEntry,
    config::Retention,
    model::{Table, TenantId, Timestamp},
};

/// What leaves.
#[derive(Clone, Debug, Default)]
pub struct Expired {
    /// Parts without a row to keep.
    pub parts: Vec<Arc<PartEntry>>,
    /// Days since the epoch of which nothing stays.
    pub days: Vec<i64>,
}

/// Instant before which rows of a table may go. `None`: kept for ever.
pub fn horizon(retention: &Retention, tenant: &TenantId, table: Table, now: Timestamp) -> Option<Timestamp> {
    let keep = i64::try_from(retention.keep(tenant, table)?.as_nanos()).unwrap_or(i64::MAX);
    Some(Timestamp(now.nanos().saturating_sub(keep)))
}

/// Parts whose newest row is older than `horizon`. A part with one younger row stays whole.
pub fn expired(parts: &[Arc<PartEntry>], horizon: Timestamp) -> Expired {
    let mut out = Expired::default();
    let mut stays: BTreeMap<i64, bool> = BTreeMap::new();
    for p in parts {
        let gone = p.max_ts < horizon;
        *stays.entry(p.day()).or_default() |= !gone;
        if gone {
            out.parts.push(p.clone());
        }
    }
    out.days = stays.into_iter().filter(|(_, stays)| !stays).map(|(day, _)| day).collect();
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{catalog::Bucket, config::RetentionRule, model::time::NANOS_PER_HOUR};

    #[test]
    fn only_whole_parts_behind_the_horizon_leave() {
        let part = |hour: i64| {
            let end = Bucket::Hour(hour).end().nanos();
            PartEntry::for_test(Bucket::Hour(hour), 1, 2, hour, Timestamp(end - NANOS_PER_HOUR), Timestamp(end - 1))
        };
        let parts = [part(1), part(23), part(24), part(25)];
        let at = |h: i64| expired(&parts, Timestamp(h * NANOS_PER_HOUR));
        assert_eq!((at(1).parts.len(), at(2).parts.len()), (0, 1));
        assert_eq!((at(24).parts.len(), at(24).days.clone()), (2, vec![0]));
        assert_eq!((at(25).parts.len(), at(25).days.clone()), (3, vec![0]));
        assert_eq!((at(26).parts.len(), at(26).days.clone()), (4, vec![0, 1]));
    }

    #[test]
    fn no_rule_keeps_for_ever_and_a_long_one_does_not_overflow() {
        let tenant = TenantId::default_tenant();
        let rule = |keep| Retention { rules: vec![RetentionRule { tenant: None, table: None, keep }] };
        let h = |r: &Retention| horizon(r, &tenant, Table::Logs, Timestamp(100));
        assert_eq!(h(&Retention::default()), None);
        assert_eq!(h(&rule(Duration::from_nanos(30))), Some(Timestamp(70)));
        assert!(h(&rule(Duration::MAX)).is_some_and(|t| t < Timestamp(-1_000)));
    }
}
