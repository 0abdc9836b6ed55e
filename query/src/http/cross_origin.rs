//! Which pages of other origins may read answers (CORS). None by default: a page anywhere could otherwise read what a
//! server on the reader's own machine holds.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header},
    middleware::Next,
};

/// Origins whose pages may read answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    #[default]
    None,
    /// Every page anywhere.
    All,
    /// `https://grafana.example`, compared as text.
    These(Arc<[String]>),
}

impl Origins {
    /// `*` among them is every origin.
    pub fn of(origins: Vec<String>) -> Self {
        match () {
            () if origins.is_empty() => Origins::None,
            () if origins.iter().any(|o| o == "*") => Origins::All,
            () => Origins::These(origins.into()),
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        match self {
            Origins::None => false,
            Origins::All => true,
            Origins::These(list) => list.iter().any(|o| o.as_bytes() == origin.as_bytes()),
        }
    }
}

const ALLOWED: [(HeaderName, &str); 3] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "Accept, Authorization, Content-Type, Origin"),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, "Date"),
];

fn tell(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    for (name, value) in ALLOWED {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// A layer of routes; answers `OPTIONS` of each of them.
pub async fn cross_origin(State(origins): State<Origins>, request: Request, next: Next) -> Response<Body> {
    let origin = request.headers().get(header::ORIGIN).filter(|o| origins.allows(o)).cloned();
    let mut response = if request.method() == Method::OPTIONS {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        tell(response.headers_mut(), origin);
    }
    response
}
