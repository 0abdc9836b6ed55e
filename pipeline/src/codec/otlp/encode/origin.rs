//! What a series was when it came in by OTLP: its metric, resource, scope and attributes, read from its origin.

use storage::model::{Labels, json::Value};

use super::{
    super::{
        metric_names::{Shape, label_name, metric_name},
        metrics::{IDENTIFYING, PROMOTED, join_equal_names},
        value::{any, label_text},
    },
    value::{self, Meta},
};
use crate::codec::{Limits, columns::EncodeError};

/// What kind of data a metric has; also the number of its field in `Metric`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    Gauge = 5,
    Sum = 7,
    Histogram = 9,
    Exponential = 10,
    Summary = 11,
}

/// What a series is of its metric's points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    Number,
    Sum,
    Count,
    Bucket(f64),
    Quantile(f64),
    Exponential,
    /// Made again by the decoder from the resource of the others.
    Derived,
}

/// A series' origin, read.
pub(super) struct Origin {
    pub name: String,
    pub unit: String,
    pub kind: String,
    pub attributes: Option<Vec<(String, Value)>>,
    pub metadata: Vec<(String, Value)>,
    pub resource: Vec<(String, Value)>,
    pub resource_meta: Meta,
    pub scope_name: Option<String>,
    pub scope_meta: Meta,
    /// Texts that tell resources and scopes apart.
    pub resource_key: String,
    pub scope_key: String,
    /// Something that this encoder does not know: the series is sent as it is.
    pub strange: bool,
}

impl Origin {
    pub fn read(text: &str) -> Result<Origin, EncodeError> {
        let mut out = Origin {
            name: String::new(),
            unit: String::new(),
            kind: String::new(),
            attributes: None,
            metadata: Vec::new(),
            resource: Vec::new(),
            resource_meta: Meta::default(),
            scope_name: None,
            scope_meta: Meta::default(),
            resource_key: String::new(),
            scope_key: String::new(),
            strange: false,
        };
        for (key, value) in value::parse_map(text, "origin")? {
            match (key.as_str(), value) {
                ("name", Value::String(s)) => out.name = s,
                ("unit", Value::String(s)) => out.unit = s,
                ("kind", Value::String(s)) => out.kind = s,
                ("attributes", Value::Map(pairs)) => out.attributes = Some(pairs),
                ("metadata", Value::Map(pairs)) => out.metadata = pairs,
                ("resource", Value::Map(pairs)) => {
                    out.resource_key.push_str(&format!("{pairs:?}"));
                    out.resource = pairs;
                }
                ("resource_meta", Value::Map(pairs)) => {
                    out.resource_key.push_str(&format!("|{pairs:?}"));
                    out.resource_meta = Meta::of(pairs);
                }
                ("scope_name", Value::String(s)) => out.scope_name = Some(s),
                ("scope_meta", Value::Map(pairs)) => {
                    out.scope_key = format!("{pairs:?}");
                    out.scope_meta = Meta::of(pairs);
                }
                _ => out.strange = true,
            }
        }
        if let Some(name) = &out.scope_name {
            out.scope_key = format!("{}|{name}", out.scope_key);
        }
        Ok(out)
    }
}

/// A value as a label's text.
fn text_of(v: &Value) -> String {
    if let Value::String(s) = v {
        return s.clone();
    }
    let bytes = value::any(v);
    any(&bytes).and_then(|v| label_text(v, &Limits::default())).unwrap_or_default()
}

/// Attributes as the decoder makes labels of them: equal names are joined with `;` in the order of the keys.
fn own_labels(attributes: &[(String, Value)]) -> Vec<(String, String)> {
    let mut sorted: Vec<&(String, Value)> =
        attributes.iter().filter(|(k, _)| !k.is_empty() && k != "__name__").collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut out: Vec<(String, String)> = sorted.into_iter().map(|(k, v)| (label_name(k), text_of(v))).collect();
    join_equal_names(&mut out);
    out
}

/// Names and values of labels.
type Pairs = Vec<(String, String)>;

/// Labels that every series of a resource gets: promoted ones, then `job` and `instance`.
fn resource_labels(resource: &[(String, Value)]) -> (Pairs, Pairs) {
    let get = |name: &str| {
        let found = resource.iter().rev().find(|(k, _)| k == name);
        found.map(|(_, v)| text_of(v)).filter(|t| !t.is_empty())
    };
    let promoted = PROMOTED.iter().filter_map(|n| Some((label_name(n), get(n)?))).collect();
    let [name, namespace, instance] = IDENTIFYING.map(get);
    let job = match (namespace, name) {
        (Some(ns), Some(name)) => Some(format!("{ns}/{name}")),
        (_, name) => name,
    };
    let identity = [("job", job), ("instance", instance)];
    (promoted, identity.into_iter().filter_map(|(n, v)| Some((n.to_owned(), v?))).collect())
}

/// The attributes of a point of a series with these labels (without `__name__`, `le` and `quantile`); `None`: there are
/// none that would give the same labels again.
pub(super) fn attributes_of(labels: &Labels, origin: &Origin) -> Option<Vec<(String, Value)>> {
    let (promoted, identity) = resource_labels(&origin.resource);
    let own = match &origin.attributes {
        Some(pairs) => pairs.clone(),
        None => labels
            .iter()
            .filter(|(n, v)| !promoted.iter().chain(&identity).any(|(pn, pv)| pn == n && pv == v))
            .map(|(n, v)| (n.to_owned(), Value::String(v.to_owned())))
            .collect(),
    };
    let again = Labels::from_pairs(promoted.into_iter().chain(own_labels(&own)).chain(identity));
    (again == *labels).then_some(own)
}

/// Form and role of a series that came in by OTLP, and whether its sum is monotonic. `labels` loses `le` or `quantile`.
pub(super) fn role_of(origin: &Origin, name: &str, labels: &mut Labels) -> Option<(Form, Role, bool)> {
    let shape = match origin.kind.as_str() {
        "gauge" => Shape::Gauge,
        "monotonic_sum" => Shape::Counter,
        _ => Shape::Other,
    };
    let family = metric_name(&origin.name, &origin.unit, shape);
    let suffix = name.strip_prefix(family.as_str())?;
    let bound = |labels: &mut Labels, label: &str| labels.remove(label)?.parse::<f64>().ok();
    Some(match (origin.kind.as_str(), suffix) {
        ("gauge", "") => (Form::Gauge, Role::Number, false),
        ("monotonic_sum", "") => (Form::Sum, Role::Number, true),
        ("sum", "") => (Form::Sum, Role::Number, false),
        ("histogram", "_sum") => (Form::Histogram, Role::Sum, false),
        ("histogram", "_count") => (Form::Histogram, Role::Count, false),
        ("histogram", "_bucket") => (Form::Histogram, Role::Bucket(bound(labels, "le")?), false),
        ("summary", "_sum") => (Form::Summary, Role::Sum, false),
        ("summary", "_count") => (Form::Summary, Role::Count, false),
        ("summary", "") => (Form::Summary, Role::Quantile(bound(labels, "quantile")?), false),
        ("exponential_histogram", "") => (Form::Exponential, Role::Exponential, false),
        _ => return None,
    })
}
