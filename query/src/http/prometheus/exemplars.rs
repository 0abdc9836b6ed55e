//! `/query_exemplars`: the exemplars of every series that an expression's selectors find.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{Array, AsArray},
    datatypes::{Float64Type, Int64Type},
};
use axum::extract::Request;
use storage::{
    ScanRequest, Selector,
    model::{Labels, Matcher, Table, TimeRange},
};

use super::{
    Answer, Api, fixed,
    series::{asked, find},
};
use crate::{
    annotations::Annotations,
    error::QueryError,
    fetch,
    http::{encode, envelope, params::Params},
    promql::{self, ast::ExprKind},
};

pub(super) async fn exemplars(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let expr = promql::parse(params.get("query").unwrap_or(""))?;
    if matches!((params.time("start")?, params.time("end")?), (Some(start), Some(end)) if end < start) {
        return Err(QueryError::BadData("end timestamp must not be before start timestamp".into()));
    }
    let mut selectors: Vec<Vec<Matcher>> = Vec::new();
    expr.walk(&mut |e| {
        if let ExprKind::Selector(s) | ExprKind::Range { selector: s, .. } = &e.kind {
            selectors.push(s.matchers.clone());
        }
    });
    let (Some(range), false) = (asked(&api, &tenant, &params)?, selectors.is_empty()) else { return Ok(fixed("[]")) };
    // A series may have been quiet around its exemplars: look it up in all of time.
    let found = find(&api, &tenant, &selectors, Some(TimeRange::ALL)).await?;
    let ids: Arc<[i64]> = found.iter().map(|s| s.id).collect();
    let mut by_series: BTreeMap<i64, Vec<(i64, String)>> = BTreeMap::new();
    let mut left = api.limits.samples_of(&tenant);
    let request = ScanRequest::new(tenant, Table::MetricExemplars, range).selector(Selector::Ids(ids));
    let mut stream = api.store.scan(request).await?;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        left = left.checked_sub(batch.num_rows()).ok_or_else(|| {
            QueryError::Execution("query would load too many exemplars into memory; narrow the time range".into())
        })?;
        let ids = fetch::column(&batch, "series_id")?.as_primitive::<Int64Type>();
        let times = fetch::column(&batch, "ts_ms")?.as_primitive::<Int64Type>();
        let values = fetch::column(&batch, "value")?.as_primitive::<Float64Type>();
        let labels = fetch::column(&batch, "labels")?.as_string::<i32>();
        let trace = fetch::column(&batch, "trace_id")?.as_binary::<i32>();
        let span = fetch::column(&batch, "span_id")?.as_binary::<i32>();
        for i in 0..batch.num_rows() {
            let mut set = Labels::from_json(labels.value(i)).unwrap_or_default();
            for (name, column) in [("trace_id", trace), ("span_id", span)] {
                if column.is_valid(i) && set.get(name).is_none() {
                    set.set(name, hex::encode(column.value(i)));
                }
            }
            let mut text = String::from("{\"labels\":");
            encode::write_labels(&mut text, &set);
            text.push_str(&format!(",\"value\":\"{}\",\"timestamp\":", promql::format_float(values.value(i))));
            encode::write_time(&mut text, times.value(i));
            text.push('}');
            by_series.entry(ids.value(i)).or_default().push((times.value(i), text));
        }
    }
    let mut data = String::from("[");
    for s in &found {
        let Some(mut list) = by_series.remove(&s.id) else { continue };
        list.sort();
        list.dedup();
        data.push_str(if data.len() > 1 { ",{\"seriesLabels\":" } else { "{\"seriesLabels\":" });
        encode::write_labels(&mut data, &s.labels);
        let texts: Vec<&str> = list.iter().map(|(_, t)| t.as_str()).collect();
        data.push_str(",\"exemplars\":[");
        data.push_str(&texts.join(","));
        data.push_str("]}");
    }
    data.push(']');
    Ok(envelope::prometheus_success(&data, &Annotations::default()))
}
