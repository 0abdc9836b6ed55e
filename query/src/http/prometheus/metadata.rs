//! `/metadata`: type, help and unit of metric families, as their senders gave them.

use std::collections::{BTreeMap, BTreeSet};

use axum::extract::Request;
use storage::model::{TimeRange, json::write_string};

use super::{Answer, Api, series::find};
use crate::{
    annotations::Annotations,
    error::QueryError,
    http::{envelope, params::Params},
};

pub(super) async fn metadata(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let number = |name: &str| -> Result<Option<usize>, QueryError> {
        match params.get(name).map(str::parse::<i64>) {
            None => Ok(None),
            Some(Ok(n)) => Ok(usize::try_from(n).ok()),
            Some(Err(_)) => Err(QueryError::BadData(format!("{name} must be a number"))),
        }
    };
    let (limit, per_metric) = (number("limit")?, number("limit_per_metric")?);
    let wanted = params.get("metric");
    let found = find(&api, &tenant, &[], Some(TimeRange::ALL)).await?;
    let mut families: BTreeMap<&str, BTreeSet<(&str, &str, &str)>> = BTreeMap::new();
    for s in &found {
        let Some(kind) = s.metric_type.as_deref() else { continue };
        let family = family(s.labels.get("__name__").unwrap_or(""), kind);
        if wanted.is_none_or(|w| w == family) {
            let entry = (kind, s.help.as_deref().unwrap_or(""), s.unit.as_deref().unwrap_or(""));
            families.entry(family).or_default().insert(entry);
        }
    }
    let mut data = String::from("{");
    for (i, (name, entries)) in families.iter().take(limit.unwrap_or(usize::MAX)).enumerate() {
        if i > 0 {
            data.push(',');
        }
        write_string(&mut data, name);
        data.push_str(":[");
        let most = per_metric.filter(|n| *n > 0).unwrap_or(usize::MAX);
        for (n, (kind, help, unit)) in entries.iter().take(most).enumerate() {
            data.push_str(if n > 0 { ",{\"type\":" } else { "{\"type\":" });
            write_string(&mut data, kind);
            data.push_str(",\"help\":");
            write_string(&mut data, help);
            data.push_str(",\"unit\":");
            write_string(&mut data, unit);
            data.push('}');
        }
        data.push(']');
    }
    data.push('}');
    Ok(envelope::prometheus_success(&data, &Annotations::default()))
}

/// Histograms and summaries go by the name without the suffix of their parts.
fn family<'a>(name: &'a str, kind: &str) -> &'a str {
    let suffixes: &[&str] = match kind {
        "histogram" | "gaugehistogram" => &["_bucket", "_count", "_sum"],
        "summary" => &["_count", "_sum"],
        _ => &[],
    };
    suffixes.iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name)
}
