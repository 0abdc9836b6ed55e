//! `/series`, `/labels` and `/label/x/values`: what there is, by selectors and time.

use axum::{body::Body, extract::Request, http::Response};
use storage::{
    ScanError, SeriesInfo,
    model::{Matcher, MatcherBudget, Table, TenantId, TimeRange},
};

use super::{Answer, Api, TRUNCATED, query::now_ms};
use crate::{
    annotations::Annotations,
    error::QueryError,
    fetch::{self, range_of_millis},
    http::{
        encode, envelope,
        params::{Params, invalid, percent_bytes},
    },
    limits::MATCHES_MAX,
    promql,
};

/// The selectors of `match[]`. What is wrong with one is told alone, as Prometheus tells it on most of its routes.
pub(in crate::http) fn matches(params: &Params) -> Result<Vec<Vec<Matcher>>, QueryError> {
    selectors(params, QueryError::BadData)
}

/// As [`matches`], naming the parameter.
pub(in crate::http) fn named_matches(params: &Params) -> Result<Vec<Vec<Matcher>>, QueryError> {
    selectors(params, |why| invalid("match[]", &why))
}

fn selectors(params: &Params, error: impl Fn(String) -> QueryError) -> Result<Vec<Vec<Matcher>>, QueryError> {
    let all: Vec<&str> = params.all("match[]").collect();
    if all.len() > MATCHES_MAX {
        return Err(error(format!("more than {MATCHES_MAX} selectors in match[]")));
    }
    let mut budget = MatcherBudget::default();
    all.into_iter()
        .map(|text| {
            promql::parse_selector_within(text, &mut budget).map_err(|e| {
                if e.message.contains("at least one non-empty matcher") {
                    error("match[] must contain at least one non-empty matcher".into())
                } else {
                    error(e.to_string())
                }
            })
        })
        .collect()
}

/// From `start` to `end`, all of time where they are not given. Of a tenant with a limit on ranges: until now and as far
/// back as it may look. `None` when the end is before the start.
pub(super) fn asked(api: &Api, tenant: &TenantId, params: &Params) -> Result<Option<TimeRange>, QueryError> {
    let bounds = api.limits.tenants.of(tenant);
    let Some(most) = bounds.range_max else { return params.range() };
    let most = i64::try_from(most.as_millis()).unwrap_or(i64::MAX);
    let end = params.time("end")?.unwrap_or_else(now_ms);
    // The end belongs to the range.
    let start = params.time("start")?.unwrap_or_else(|| end.saturating_sub(most).saturating_add(1));
    bounds.check_range(end.saturating_sub(start).saturating_mul(1_000_000)).map_err(QueryError::Execution)?;
    Ok(range_of_millis(start, end))
}

/// Series of any of the selectors (of all series if there are none), each once, sorted by labels.
pub(super) async fn find(
    api: &Api,
    tenant: &TenantId,
    matches: &[Vec<Matcher>],
    range: Option<TimeRange>,
) -> Result<Vec<SeriesInfo>, QueryError> {
    let Some(range) = range else { return Ok(Vec::new()) };
    let everything = [Vec::new()];
    let matches = if matches.is_empty() { &everything[..] } else { matches };
    let mut out = Vec::new();
    for matchers in matches {
        out.extend(fetch::series(&api.store, tenant, matchers, range).await?);
    }
    let series_max = api.limits.series_of(tenant);
    if out.len() > series_max {
        return Err(QueryError::Execution(format!(
            "request selects {} series, more than the limit of {series_max} series; add matchers",
            out.len()
        )));
    }
    if matches.len() > 1 {
        out.sort_by(|a, b| a.labels.cmp(&b.labels));
        out.dedup_by_key(|s| s.id);
    }
    Ok(out)
}

fn truncated<T>(list: &mut Vec<T>, limit: Option<usize>) -> Annotations {
    let mut notes = Annotations::default();
    if let Some(limit) = limit
        && list.len() > limit
    {
        list.truncate(limit);
        notes.warn_plain(TRUNCATED);
    }
    notes
}

pub(super) async fn series(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let matches = named_matches(&params)?;
    if matches.is_empty() {
        return Err(QueryError::BadData("no match[] parameter provided".into()));
    }
    let limit = params.limit()?;
    let mut found = find(&api, &tenant, &matches, asked(&api, &tenant, &params)?).await?;
    let notes = truncated(&mut found, limit);
    let mut data = String::from("[");
    for (i, s) in found.iter().enumerate() {
        if i > 0 {
            data.push(',');
        }
        encode::write_labels(&mut data, &s.labels);
    }
    data.push(']');
    Ok(envelope::prometheus_success(&data, &notes))
}

fn strings(mut list: Vec<String>, limit: Option<usize>) -> Response<Body> {
    let notes = truncated(&mut list, limit);
    let mut data = String::new();
    encode::write_strings(&mut data, list.iter().map(String::as_str));
    envelope::prometheus_success(&data, &notes)
}

pub(super) async fn labels(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let (matches, limit) = (matches(&params)?, params.limit()?);
    let range = asked(&api, &tenant, &params)?;
    let names = of_all(&matches, range, |matchers, range| {
        let (store, tenant) = (&api.store, &tenant);
        async move { store.label_names(tenant, Table::MetricSeries, &matchers, range).await }
    });
    Ok(strings(names.await?, limit))
}

/// What `look` finds for any of the selectors (of all series if there are none), each once, sorted. Costs as much as is
/// found, so it is not held to a number of series.
async fn of_all<F: Future<Output = Result<Vec<String>, ScanError>>>(
    matches: &[Vec<Matcher>],
    range: Option<TimeRange>,
    look: impl Fn(Vec<Matcher>, TimeRange) -> F,
) -> Result<Vec<String>, QueryError> {
    let Some(range) = range else { return Ok(Vec::new()) };
    let everything = [Vec::new()];
    let matches = if matches.is_empty() { &everything[..] } else { matches };
    let mut out = Vec::new();
    for matchers in matches {
        out.extend(look(matchers.clone(), range).await?);
    }
    if matches.len() > 1 {
        out.sort_unstable();
        out.dedup();
    }
    Ok(out)
}

/// Of a path whose label name is not UTF-8.
pub(super) fn not_utf8(path: &str) -> QueryError {
    let name = path.split_once("/label/").map_or(path, |(_, rest)| rest.trim_end_matches("/values"));
    let mut shown = String::new();
    for chunk in percent_bytes(name, false).utf8_chunks() {
        shown.extend(chunk.valid().escape_debug());
        shown.extend(chunk.invalid().iter().map(|b| format!("\\x{b:02x}")));
    }
    QueryError::BadData(format!("invalid label name: \"{shown}\""))
}

pub(super) async fn label_values(api: Api, name: &str, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let name = unescape_label(name);
    if name.is_empty() || name.contains('\u{FFFD}') {
        return Err(QueryError::BadData(format!("invalid label name: {name:?}")));
    }
    let (matches, limit) = (matches(&params)?, params.limit()?);
    let range = asked(&api, &tenant, &params)?;
    let values = of_all(&matches, range, |matchers, range| {
        let (store, tenant, name) = (&api.store, &tenant, &name);
        async move { store.label_values(tenant, Table::MetricSeries, name, &matchers, range).await }
    });
    Ok(strings(values.await?, limit))
}

/// `U__a_2e_b` is `a.b`: `__` an underscore, `_hex_` a code point. What is not well-formed stays as it is.
fn unescape_label(name: &str) -> String {
    fn inner(text: &str) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            if c != '_' {
                if !(c.is_ascii_alphanumeric() || c == ':') {
                    return None;
                }
                out.push(c);
                continue;
            }
            let end = rest.find('_')?;
            if end == 0 {
                out.push('_');
            } else {
                let code = u32::from_str_radix(rest.get(..end).filter(|h| h.len() <= 6)?, 16).ok()?;
                out.push(char::from_u32(code)?);
            }
            rest = &rest[end + 1..];
        }
        Some(out)
    }
    name.strip_prefix("U__").and_then(inner).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_label_names_are_read() {
        assert_eq!(unescape_label("U__http_2e_status"), "http.status");
        assert_eq!(unescape_label("U__a__b"), "a_b");
        assert_eq!(unescape_label("U__bad_"), "U__bad_");
        assert_eq!(unescape_label("job"), "job");
    }
}
