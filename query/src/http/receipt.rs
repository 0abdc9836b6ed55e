//! What a delete did, in the headers of an answer without a body and in JSON.

use std::fmt::Write as _;

use axum::{
    body::Body,
    http::{Response, StatusCode},
};
use storage::Receipt;

/// Carries the receipt of an answer 204.
pub const HEADER: &str = "x-sightline-deleted";

/// 204 with the receipt.
pub fn no_content(receipt: Receipt) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let text = format!("files={}, rows={}, bytes={}", receipt.files, receipt.rows, receipt.bytes);
    if let Ok(value) = text.parse() {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

/// `{"files":1,"rows":2,"bytes":3}`.
pub fn write(out: &mut String, receipt: Receipt) {
    let Receipt { files, rows, bytes, damaged } = receipt;
    let _ = write!(out, "{{\"files\":{files},\"rows\":{rows},\"bytes\":{bytes},\"damaged_files\":{damaged}}}");
}
