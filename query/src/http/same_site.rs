//! Who may ask for something that cannot be undone: programs, and pages of this server. A browser lets any page send a POST
//! to a loopback address; it says so in headers that the page cannot change.

use axum::http::{
    HeaderMap,
    header::{HOST, ORIGIN},
};

/// Whether a request comes from a page of another site.
pub fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |v: &axum::http::HeaderValue| v.to_str().unwrap_or("").to_ascii_lowercase();
    if let Some(site) = headers.get("sec-fetch-site").map(text)
        && !matches!(site.as_str(), "same-origin" | "none")
    {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN).map(text) else { return false };
    let host = headers.get(HOST).map(text).unwrap_or_default();
    host.is_empty() || origin.split_once("://").map(|(_, rest)| rest) != Some(host.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_are_told_from_programs_and_own_pages() {
        let foreign = |pairs: &[(&'static str, &'static str)]| {
            let mut h = HeaderMap::new();
            for (name, value) in pairs {
                h.insert(*name, value.parse().unwrap());
            }
            is_foreign(&h)
        };
        assert!(!foreign(&[("host", "localhost:7600")]));
        assert!(!foreign(&[("host", "localhost:7600"), ("origin", "http://localhost:7600")]));
        assert!(!foreign(&[("sec-fetch-site", "same-origin")]));
        assert!(foreign(&[("host", "localhost:7600"), ("origin", "https://evil.example")]));
        assert!(foreign(&[("host", "localhost:7600"), ("origin", "null")]));
        assert!(foreign(&[("sec-fetch-site", "cross-site")]));
    }
}
