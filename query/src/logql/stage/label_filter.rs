//! Label filters on the labels of one entry.

use storage::model::Matcher;

use super::ip::IpMatcher;
use crate::logql::{
    ast::{self, CompareOp, Literal},
    error::QueryError,
    lexer,
};

pub const ERROR: &str = "__error__";
pub const ERROR_DETAILS: &str = "__error_details__";

/// A compiled label filter.
pub enum LabelTest {
    Match(Matcher),
    Ip { name: String, negated: bool, ip: IpMatcher },
    Compare { name: String, op: CompareOp, value: Literal },
    And(Box<LabelTest>, Box<LabelTest>),
    Or(Box<LabelTest>, Box<LabelTest>),
}

/// What a label filter may set on an entry it keeps: the details of a `LabelFilterErr`.
pub type FilterError = Option<String>;

impl LabelTest {
    pub fn new(filter: &ast::LabelFilter) -> Result<Self, QueryError> {
        Ok(match filter {
            ast::LabelFilter::Match(m) => LabelTest::Match(m.clone()),
            ast::LabelFilter::Ip { name, negated, pattern } => LabelTest::Ip {
                name: name.clone(),
                negated: *negated,
                ip: IpMatcher::parse(pattern).map_err(|e| {
                    QueryError::parse(format!("stage '{}' : {e}", crate::logql::print::label_filter(filter)))
                })?,
            },
            ast::LabelFilter::Compare { name, op, value } => {
                LabelTest::Compare { name: name.clone(), op: *op, value: *value }
            }
            ast::LabelFilter::And(a, b) => LabelTest::And(Box::new(Self::new(a)?), Box::new(Self::new(b)?)),
            ast::LabelFilter::Or(a, b) => LabelTest::Or(Box::new(Self::new(a)?), Box::new(Self::new(b)?)),
        })
    }

    /// Labels it reads.
    pub fn names(&self, out: &mut Vec<String>) {
        match self {
            LabelTest::Match(m) => out.push(m.name().to_owned()),
            LabelTest::Ip { name, .. } | LabelTest::Compare { name, .. } => out.push(name.clone()),
            LabelTest::And(a, b) | LabelTest::Or(a, b) => {
                a.names(out);
                b.names(out);
            }
        }
    }

    /// Whether it only compares strings: no error can come of it, so it may run before anything else.
    pub fn is_plain(&self) -> bool {
        match self {
            LabelTest::Match(_) => true,
            LabelTest::Ip { .. } | LabelTest::Compare { .. } => false,
            LabelTest::And(a, b) | LabelTest::Or(a, b) => a.is_plain() && b.is_plain(),
        }
    }

    /// Whether an entry is kept. `get` answers for present labels only. `has_error`: the entry has an `__error__` already.
    pub fn keep<'a>(&self, get: &dyn Fn(&str) -> Option<&'a str>, has_error: bool, error: &mut FilterError) -> bool {
        match self {
            LabelTest::Match(m) => m.matches_value(get(m.name()).unwrap_or("")),
            LabelTest::Ip { name, negated, ip } => {
                if has_error {
                    return true;
                }
                match get(name) {
                    None => false,
                    Some(v) => ip.matches_value(v) != *negated,
                }
            }
            LabelTest::Compare { name, op, value } => {
                let Some(text) = get(name) else { return false };
                match compare(text, *op, *value) {
                    Ok(keep) => keep,
                    Err(details) => {
                        error.get_or_insert(details);
                        true
                    }
                }
            }
            LabelTest::And(a, b) => a.keep(get, has_error, error) && b.keep(get, has_error || error.is_some(), error),
            LabelTest::Or(a, b) => a.keep(get, has_error, error) || b.keep(get, has_error || error.is_some(), error),
        }
    }
}

fn compare(text: &str, op: CompareOp, value: Literal) -> Result<bool, String> {
    match value {
        Literal::Number(want) => match parse_number(text) {
            Some(v) => Ok(op.holds(v, want)),
            None => Err(format!("strconv.ParseFloat: parsing {text:?}: invalid syntax")),
        },
        Literal::Duration(want) => match lexer::parse_go_duration(text) {
            Some(v) => Ok(op.holds(v, want)),
            None if parse_number(text).is_some_and(f64::is_finite) => {
                Err(format!("time: missing unit in duration {text:?}"))
            }
            None => Err(match unknown_unit(text) {
                Some(unit) => format!("time: unknown unit {unit:?} in duration {text:?}"),
                None => format!("time: invalid duration {text:?}"),
            }),
        },
        Literal::Bytes(want) => match lexer::parse_bytes(text) {
            Some(v) => Ok(op.holds(v, want)),
            None if !text.starts_with(|c: char| c.is_ascii_digit()) => {
                Err("strconv.ParseFloat: parsing \"\": invalid syntax".to_owned())
            }
            None => Err(format!(
                "unhandled size name: {}",
                text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').trim()
            )),
        },
    }
}

/// The first unit behind a number that Go does not know.
fn unknown_unit(text: &str) -> Option<&str> {
    let digit = |c: char| c.is_ascii_digit() || c == '.';
    let mut rest = text.trim_start_matches(['-', '+']);
    while rest.starts_with(digit) {
        let unit = rest.trim_start_matches(digit);
        let n = unit.find(digit).unwrap_or(unit.len());
        if n == 0 {
            return None;
        }
        if !["ns", "us", "µs", "μs", "ms", "s", "m", "h"].contains(&&unit[..n]) {
            return Some(&unit[..n]);
        }
        rest = &unit[n..];
    }
    None
}

/// Go's `strconv.ParseFloat` as far as it differs: no surrounding space; `Inf`, `infinity`, `nan` in any case.
pub fn parse_number(text: &str) -> Option<f64> {
    text.parse().ok()
}
