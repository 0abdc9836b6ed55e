//! What goes wrong with a pushed request, as a status that senders understand. Each protocol writes it in its own shape.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use pipeline::{
    DeliveryError,
    codec::{Malformed, compress::InflateError},
};

/// A refused request.
#[derive(Debug, Clone)]
pub struct Failure {
    pub status: StatusCode,
    pub message: String,
    /// When the sender shall try again; only where that can help.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Failure { status, message: message.into(), retry_after: None }
    }

    /// 503 with `Retry-After`: nothing is wrong with the request.
    pub fn unavailable(message: impl Into<String>, retry_after: Duration) -> Self {
        Failure { status: StatusCode::SERVICE_UNAVAILABLE, message: message.into(), retry_after: Some(retry_after) }
    }

    /// An answer with the given body and the headers this failure needs.
    pub fn response(&self, content_type: &'static str, body: impl Into<Body>) -> Response {
        let mut r = (self.status, [(header::CONTENT_TYPE, content_type)], body.into()).into_response();
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up; zero would mean at once.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            r.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        r
    }
}

impl From<Malformed> for Failure {
    fn from(m: Malformed) -> Self {
        Failure::new(StatusCode::BAD_REQUEST, m.0)
    }
}

impl From<InflateError> for Failure {
    fn from(e: InflateError) -> Self {
        let status = match e {
            InflateError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            InflateError::Corrupt { .. } => StatusCode::BAD_REQUEST,
        };
        Failure::new(status, e.to_string())
    }
}

impl From<DeliveryError> for Failure {
    fn from(e: DeliveryError) -> Self {
        match e {
            DeliveryError::Unavailable { reason, retry_after } => Failure::unavailable(reason, retry_after),
            DeliveryError::Stopping => Failure::unavailable(e.to_string(), Duration::from_secs(1)),
            DeliveryError::Rejected(reason) => Failure::new(StatusCode::BAD_REQUEST, reason),
        }
    }
}
