//! Whose data a request carries.

use http::{HeaderMap, StatusCode};
use storage::model::TenantId;

use crate::reply::Failure;

/// The header Loki, Mimir and Tempo use; Grafana and every agent can send it.
pub const TENANT_HEADER: &str = "x-scope-orgid";

/// The tenant a request names; without the header (or with an empty one) the default tenant. gRPC metadata are headers
/// here too.
pub fn tenant(headers: &HeaderMap) -> Result<TenantId, Failure> {
    TenantId::named(headers.get_all(TENANT_HEADER).iter().map(|v| v.as_bytes()))
        .map_err(|e| Failure::new(StatusCode::BAD_REQUEST, format!("header X-Scope-OrgID: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_header_is_the_default_tenant_and_a_bad_one_is_refused_with_its_reason() {
        let mut headers = HeaderMap::new();
        assert_eq!(tenant(&headers).unwrap(), TenantId::default_tenant());
        headers.insert(TENANT_HEADER, "team-a".parse().unwrap());
        assert_eq!(tenant(&headers).unwrap().as_str(), "team-a");
        headers.insert(TENANT_HEADER, "../x".parse().unwrap());
        let e = tenant(&headers).unwrap_err();
        assert_eq!((e.status.as_u16(), e.message.contains("X-Scope-OrgID")), (400, true));
    }
}
