//! Each API's success and error shapes, and which status an error has. Internal text stays in our log.

use axum::{
    body::Body,
    http::{Response, StatusCode, header::CONTENT_TYPE},
};
use storage::{ErrorKind, model::json::write_string};

use crate::{annotations::Annotations, error::QueryError};

/// A JSON answer.
pub fn json(status: StatusCode, body: String) -> Response<Body> {
    with_type(status, "application/json", body)
}

pub fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// Prometheus: `{"status":"success","data":DATA,"warnings":[..],"infos":[..]}`. `data` is JSON.
pub fn prometheus_success(data: &str, notes: &Annotations) -> Response<Body> {
    let mut body = String::with_capacity(data.len() + 64);
    body.push_str(r#"{"status":"success","data":"#);
    body.push_str(data);
    for (key, list) in [("warnings", notes.warnings_shown()), ("infos", notes.infos_shown())] {
        if list.is_empty() {
            continue;
        }
        body.push_str(&format!(",\"{key}\":["));
        for (i, text) in list.iter().enumerate() {
            if i > 0 {
                body.push(',');
            }
            write_string(&mut body, text);
        }
        body.push(']');
    }
    body.push('}');
    json(StatusCode::OK, body)
}

/// Prometheus: `{"status":"error","errorType":..,"error":..}`.
pub fn prometheus_error(error: &QueryError) -> Response<Body> {
    let (status, body) = prometheus_error_text(error, None);
    json(status, body)
}

/// Prometheus' error, with the line and column of the query text it is about where they are known:
/// `"position":{"line":1,"column":8}`.
pub fn prometheus_error_text(error: &QueryError, position: Option<(u64, u64)>) -> (StatusCode, String) {
    let (status, kind) = match error {
        QueryError::Syntax(_) | QueryError::BadData(_) => (StatusCode::BAD_REQUEST, "bad_data"),
        QueryError::Execution(_) | QueryError::TooLarge(_) => (StatusCode::UNPROCESSABLE_ENTITY, "execution"),
        QueryError::Timeout(_) => (StatusCode::SERVICE_UNAVAILABLE, "timeout"),
        QueryError::Canceled(_) => (StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST), "canceled"),
        QueryError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
        QueryError::Storage(e) => match e.kind() {
            ErrorKind::Invalid | ErrorKind::TooLarge => (StatusCode::UNPROCESSABLE_ENTITY, "execution"),
            ErrorKind::Overloaded | ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        },
        QueryError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    };
    let text = match error {
        QueryError::Syntax(e) => format!("invalid parameter \"query\": {e}"),
        other => other.to_string(),
    };
    log_internal(error);
    let mut body = format!("{{\"status\":\"error\",\"errorType\":\"{kind}\",\"error\":");
    write_string(&mut body, &text);
    if let Some((line, column)) = position {
        body.push_str(&format!(",\"position\":{{\"line\":{line},\"column\":{column}}}"));
    }
    body.push('}');
    (status, body)
}

/// Tempo: plain text.
pub fn tempo_error(error: &QueryError) -> Response<Body> {
    log_internal(error);
    let status = match error {
        QueryError::NotFound(_) => return with_type(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", ""),
        QueryError::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        _ => match error.kind() {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::TooLarge => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::Overloaded | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        },
    };
    with_type(status, "text/plain; charset=utf-8", error.to_string())
}

/// What a client is not told, in our log.
pub(super) fn log_internal(error: &QueryError) {
    match error {
        QueryError::Internal(text) => tracing::error!(error = %text, "query failed inside"),
        QueryError::Storage(e) => tracing::warn!(error = %e, "query failed in storage"),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use storage::ScanError;

    use super::*;

    #[tokio::test]
    async fn each_kind_of_error_has_prometheus_status_and_name_and_what_is_internal_stays_inside() {
        let syntax = crate::promql::parse("1 +").unwrap_err();
        let part = || ("p".to_owned(), "why".to_owned());
        let (unavailable, corrupt) = (
            |(part, reason)| QueryError::Storage(ScanError::Unavailable { part, reason }),
            |(part, reason)| QueryError::Storage(ScanError::Corrupt { part, reason }),
        );
        for (error, status, kind, text) in [
            (
                QueryError::Syntax(syntax),
                400,
                "bad_data",
                "invalid parameter \"query\": 1:4: parse error: unexpected end of input",
            ),
            (QueryError::BadData("no".into()), 400, "bad_data", "no"),
            (QueryError::Execution("no".into()), 422, "execution", "no"),
            (QueryError::TooLarge("no".into()), 422, "execution", "no"),
            (QueryError::Timeout("x"), 503, "timeout", "query timed out in x"),
            (QueryError::Canceled("x"), 499, "canceled", "query was canceled in x"),
            (QueryError::NotFound("no".into()), 404, "not_found", "no"),
            (unavailable(part()), 503, "unavailable", "storage: cannot read part p: why; try again later"),
            (corrupt(part()), 500, "internal", "storage: cannot read part p: why"),
            (QueryError::Storage(ScanError::Invalid("no".into())), 422, "execution", "storage: no"),
            (QueryError::Internal("secret".into()), 500, "internal", "internal error"),
        ] {
            let shown = format!("{error:?}");
            let response = prometheus_error(&error);
            assert_eq!(response.status().as_u16(), status, "{shown}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body, serde_json::json!({"status": "error", "errorType": kind, "error": text}), "{shown}");
        }
    }
}
