//! Tenant names, checked so that a name can never become a path outside its folder.

use std::{fmt, sync::Arc};

/// Longest tenant name in bytes.
pub const TENANT_BYTES_MAX: usize = 150;

/// A checked tenant name: 1 to 150 bytes of `[A-Za-z0-9!._*'()-]`, not `.`, `..` or one that starts with a dot.
/// Source: the character set Loki, Mimir and Tempo accept in `X-Scope-OrgID`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    #[error("tenant name is empty")]
    Empty,
    #[error("tenant name is longer than {TENANT_BYTES_MAX} bytes")]
    TooLong,
    #[error("tenant name contains unsupported character {0:?}; use letters, digits and !._*'()-")]
    Character(char),
    #[error("tenant name must not start with a dot")]
    LeadingDot,
    #[error("a request is for one tenant; send one request for each of several")]
    Several,
}

impl TenantId {
    /// The tenant of requests that name none.
    pub fn default_tenant() -> Self {
        TenantId(Arc::from("default"))
    }

    pub fn parse(name: &str) -> Result<Self, TenantError> {
        if name.is_empty() {
            return Err(TenantError::Empty);
        }
        if name.len() > TENANT_BYTES_MAX {
            return Err(TenantError::TooLong);
        }
        if name.contains('|') {
            return Err(TenantError::Several);
        }
        if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "!._*'()-".contains(*c))) {
            return Err(TenantError::Character(c));
        }
        if name.starts_with('.') {
            return Err(TenantError::LeadingDot);
        }
        Ok(TenantId(Arc::from(name)))
    }

    /// The tenant that a request's headers of that purpose name: the default one when there is none or an empty one.
    /// Two headers that differ are refused, because what stands in front of us may have looked at the other one.
    pub fn named<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, TenantError> {
        let mut named: Option<Self> = None;
        for value in values {
            let tenant = match std::str::from_utf8(value) {
                Ok("") => Self::default_tenant(),
                Ok(name) => Self::parse(name)?,
                Err(_) => return Err(TenantError::Character(char::REPLACEMENT_CHARACTER)),
            };
            match &named {
                Some(other) if *other != tenant => return Err(TenantError::Several),
                _ => named = Some(tenant),
            }
        }
        Ok(named.unwrap_or_default())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TenantId {
    fn default() -> Self {
        Self::default_tenant()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_for_one_tenant() {
        let named = |values: &[&str]| TenantId::named(values.iter().map(|v| v.as_bytes()));
        assert_eq!(named(&[]).unwrap(), TenantId::default_tenant());
        assert_eq!(named(&[""]).unwrap(), TenantId::default_tenant());
        assert_eq!(named(&["a", "a"]).unwrap().as_str(), "a");
        for bad in [&["a", "b"][..], &["a|b"], &["a", ""], &["|"]] {
            assert_eq!(named(bad), Err(TenantError::Several), "{bad:?}");
        }
        assert!(TenantId::named([&b"\xff"[..]]).is_err());
    }

    #[test]
    fn a_name_cannot_become_a_path() {
        for bad in ["", ".", "..", "a/b", "a\\b", ".hidden", "a\0b", "ü", "a b"] {
            assert!(TenantId::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["default", "team-1", "a.b", "A_*'()!"] {
            assert_eq!(TenantId::parse(good).unwrap().as_str(), good);
        }
    }
}
