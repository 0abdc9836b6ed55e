//! Answers in gzip or deflate for clients that take them. Only answers that are whole: streams are sent as they come.

use std::io::Write as _;

use axum::{
    body::{Body, HttpBody as _},
    extract::Request,
    http::{
        HeaderMap, HeaderValue, Response,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VARY},
    },
    middleware::Next,
};
use flate2::{Compression, write::GzEncoder, write::ZlibEncoder};
use http_body_util::BodyExt as _;

/// Smaller answers are not worth it.
const BYTES_MIN: u64 = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Gzip,
    /// Deflate in a zlib frame, as HTTP means it.
    Deflate,
}

/// Gzip where both are welcome.
fn wanted(headers: &HeaderMap) -> Option<Encoding> {
    let (mut gzip, mut deflate) = (false, false);
    let all = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    for entry in all {
        let (name, rest) = entry.split_once(';').unwrap_or((entry, ""));
        let refused = rest.trim().strip_prefix("q=").and_then(|q| q.trim().parse::<f32>().ok()) == Some(0.0);
        match name.trim() {
            "gzip" | "x-gzip" => gzip = !refused,
            "deflate" => deflate = !refused,
            _ => {}
        }
    }
    if gzip { Some(Encoding::Gzip) } else { deflate.then_some(Encoding::Deflate) }
}

/// A layer of routes.
pub async fn compressed(request: Request, next: Next) -> Response<Body> {
    let encoding = wanted(request.headers());
    let mut response = next.run(request).await;
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let text = kind.starts_with("application/json")
        || kind.starts_with("text/")
        || kind.starts_with("application/openmetrics-text");
    let whole = response.body().size_hint().exact().is_some_and(|n| n >= BYTES_MIN);
    if !text || !whole || response.headers().contains_key(CONTENT_ENCODING) {
        return response;
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    let Some(encoding) = encoding else { return response };
    let (mut head, body) = response.into_parts();
    let Ok(plain) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
        return Response::from_parts(head, Body::empty());
    };
    let original = plain.clone();
    let deflated = tokio::task::spawn_blocking(move || match encoding {
        Encoding::Gzip => {
            let mut out = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
            out.write_all(&plain).and_then(|()| out.finish())
        }
        Encoding::Deflate => {
            let mut out = ZlibEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
            out.write_all(&plain).and_then(|()| out.finish())
        }
    });
    // Writing to memory does not fail; if it did, the answer is still good as it was.
    let Ok(Ok(deflated)) = deflated.await else { return Response::from_parts(head, Body::from(original)) };
    head.headers.remove(CONTENT_LENGTH);
    let name = if encoding == Encoding::Gzip { "gzip" } else { "deflate" };
    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    Response::from_parts(head, Body::from(deflated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_refuses_it_does_not_get() {
        let wanted = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(text));
            wanted(&headers).map(|e| e == Encoding::Gzip)
        };
        assert_eq!(wanted("gzip, deflate, br"), Some(true));
        assert_eq!(wanted("deflate;q=0.5"), Some(false));
        assert_eq!(wanted("gzip;q=0, deflate"), Some(false));
        assert_eq!(wanted("identity"), None);
    }
}
