//! `/federate`: the newest sample of each matching series, in the formats of scrapes.
//!
//! Only samples within the lookback window are shown, none of a series that has ended, and always with their time. Series
//! without a name are left out. Series get the external labels that they have not, and an empty `instance` where they have
//! none, so that the scraper does not add its own.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE},
};
use storage::{
    ErrorKind,
    model::{Labels, batch::HistogramRow},
};

use super::{
    Api,
    exposition::{Exposed, Exposition, Value, Writer},
    query::now_ms,
    series::{find, matches},
};
use crate::{
    error::QueryError,
    fetch::range_of_millis,
    http::{envelope, params::Params},
    limits::{FEDERATE_ANSWER_BYTES_MAX, READ_GROUP_SERIES_MAX},
    promql::is_stale,
    raw,
};

pub(super) async fn federate(State(api): State<Api>, request: Request) -> Response<Body> {
    answer(api, request).await.unwrap_or_else(|e| {
        let status = match e.kind() {
            ErrorKind::Invalid | ErrorKind::TooLarge => StatusCode::BAD_REQUEST,
            ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::Deadline => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        envelope::log_internal(&e);
        envelope::with_type(status, "text/plain; charset=utf-8", format!("{e}\n"))
    })
}

/// The newest point of a series.
enum Newest {
    Float(f64),
    Histogram(HistogramRow),
}

struct Row {
    name: String,
    /// Without the name.
    labels: Vec<(String, String)>,
    ts_ms: i64,
    point: Newest,
}

impl Row {
    fn value(&self) -> Value<'_> {
        match &self.point {
            Newest::Float(v) => Value::Untyped(*v),
            Newest::Histogram(h) => Value::Histogram(h),
        }
    }

    /// What one family has in common.
    fn kind(&self) -> (&str, Option<bool>) {
        let gauge = match &self.point {
            Newest::Float(_) => None,
            Newest::Histogram(h) => Some(h.reset_hint == 3),
        };
        (&self.name, gauge)
    }
}

async fn answer(api: Api, request: Request) -> Result<Response<Body>, QueryError> {
    let how = Exposition::negotiated(request.headers());
    let (params, tenant) = Params::of(request).await?;
    let matches = matches(&params)?;
    let deadline = api.limits.timeout;
    let external = api.external_labels();
    let work = async {
        let now = now_ms();
        let lookback = i64::try_from(api.limits.lookback.as_millis()).unwrap_or(i64::MAX / 4);
        let times = (now - lookback + 1, now);
        // Without a selector nothing is asked for.
        let range = range_of_millis(times.0, times.1).filter(|_| !matches.is_empty());
        let found = find(&api, &tenant, &matches, range).await?;
        let mut rows = Vec::new();
        for infos in found.chunks(READ_GROUP_SERIES_MAX) {
            let mut left = api.limits.samples_of(&tenant);
            let series = raw::points(&api.store, &tenant, infos, times, &mut left).await?;
            let series = series.ok_or_else(|| QueryError::TooLarge("exceeded sample limit".into()))?;
            rows.extend(series.into_iter().filter_map(|s| newest(s, &external)));
        }
        tokio::task::spawn_blocking(move || written(how, rows))
            .await
            .map_err(|e| QueryError::Internal(e.to_string()))?
    };
    let body = tokio::time::timeout(deadline, work).await.map_err(|_| QueryError::Timeout("federation"))??;
    let mut response = Response::new(Body::from(body));
    let content = HeaderValue::try_from(how.content_type()).map_err(|e| QueryError::Internal(e.to_string()))?;
    response.headers_mut().insert(CONTENT_TYPE, content);
    Ok(response)
}

fn newest(mut series: raw::RawSeries, external: &Labels) -> Option<Row> {
    let name = series.labels.get("__name__")?.to_owned();
    let float = series.samples.pop();
    let histogram = series.histograms.pop();
    let (ts_ms, point) = match (float, histogram) {
        (Some((t, v)), h) if h.as_ref().is_none_or(|h| h.0 < t) => (t, Newest::Float(v)),
        (_, Some((t, h))) => (t, Newest::Histogram(h)),
        _ => return None,
    };
    let ended = match &point {
        Newest::Float(v) => is_stale(*v),
        Newest::Histogram(h) => is_stale(h.sum),
    };
    if ended {
        return None;
    }
    let labels = Arc::unwrap_or_clone(series.labels);
    let mut labels: Vec<(String, String)> =
        labels.iter().filter(|(n, _)| *n != "__name__").map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    let own = labels.len();
    for (name, value) in external.iter().chain([("instance", "")]) {
        if name != "__name__" && !labels.iter().any(|(n, _)| n == name) {
            labels.push((name.to_owned(), value.to_owned()));
        }
    }
    labels[own..].sort();
    Some(Row { name, labels, ts_ms, point })
}

fn written(how: Exposition, mut rows: Vec<Row>) -> Result<Vec<u8>, QueryError> {
    rows.sort_by(|a, b| (a.kind(), &a.labels).cmp(&(b.kind(), &b.labels)));
    let mut writer = Writer::new(how);
    for family in rows.chunk_by(|a, b| a.kind() == b.kind()) {
        let metrics: Vec<Exposed<'_>> = family
            .iter()
            .map(|r| Exposed { labels: &r.labels, ts_ms: r.ts_ms, value: r.value() })
            .filter(|m| writer.can_show(m.value))
            .collect();
        writer.family(&family[0].name, &metrics);
        if writer.out.len() > FEDERATE_ANSWER_BYTES_MAX {
            return Err(QueryError::TooLarge(format!(
                "the answer is larger than the limit of {FEDERATE_ANSWER_BYTES_MAX} bytes; add matchers"
            )));
        }
    }
    Ok(writer.finish())
}
