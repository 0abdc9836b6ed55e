//! The sections `transforms` and `sinks` of the configuration.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::{sink::registry::SinkConfig, transform::registry::TransformConfig};

/// What the pipeline reads of the configuration; sources are the collector's. All of it may be absent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PipelineConfig {
    pub transforms: BTreeMap<String, TransformConfig>,
    pub sinks: BTreeMap<String, SinkConfig>,
}

/// What a configuration reader said of a name it does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    pub name: String,
    /// The names that are valid in its place.
    pub valid: Vec<String>,
}

impl UnknownName {
    /// Reads the message of any serde error (`unknown field` or `unknown variant`), so that whoever reports it can name the
    /// nearest valid name ([`crate::error::nearest`]). `None` for other errors.
    pub fn from_error(message: &str) -> Option<UnknownName> {
        let rest = message.split_once("unknown field `").or_else(|| message.split_once("unknown variant `"))?.1;
        let (name, rest) = rest.split_once('`')?;
        // `expected `a``, `expected `a` or `b``, `expected one of `a`, `b``; or `there are no fields`.
        let valid = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        Some(UnknownName { name: name.to_owned(), valid })
    }
}

/// A section whose entries have a `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Transforms,
    Sinks,
}

/// The values that `type` may have.
pub fn valid_types(section: Section) -> Vec<String> {
    valid_names(section, &serde_json::json!({ "type": UNKNOWN }))
}

/// The fields of an entry of this type, without `type` itself. Empty for a type that does not exist.
pub fn valid_fields(section: Section, type_name: &str) -> Vec<String> {
    if !valid_types(section).iter().any(|t| t == type_name) {
        return Vec::new();
    }
    valid_names(section, &serde_json::json!({ "type": type_name, UNKNOWN: 0 }))
}

/// A name that no component has: reading it makes the reader tell what it knows, so no second list can go stale.
const UNKNOWN: &str = "\u{0}";

fn valid_names(section: Section, probe: &serde_json::Value) -> Vec<String> {
    let error = match section {
        Section::Transforms => TransformConfig::deserialize(probe).err(),
        Section::Sinks => SinkConfig::deserialize(probe).err(),
    };
    error.and_then(|e| UnknownName::from_error(&e.to_string())).map(|u| u.valid).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::nearest;

    #[test]
    fn valid_names_come_from_the_readers_themselves() {
        assert_eq!(
            valid_types(Section::Transforms),
            [
                "filter",
                "parse",
                "set",
                "rename",
                "remove",
                "relabel",
                "redact",
                "sample",
                "dedupe",
                "throttle",
                "route",
                "normalize",
                "limit_labels"
            ]
        );
        assert_eq!(
            valid_types(Section::Sinks),
            ["store", "stdout", "file", "otlp", "loki", "remote_write", "elasticsearch", "http"]
        );
        assert_eq!(valid_fields(Section::Transforms, "filter"), ["inputs", "condition"]);
        assert_eq!(valid_fields(Section::Sinks, "store"), ["inputs"]);
        assert!(valid_fields(Section::Transforms, "parse").contains(&"time_format".to_owned()));
        assert!(valid_fields(Section::Transforms, "nope").is_empty());
    }

    #[test]
    fn an_unknown_field_leads_to_the_nearest_valid_one() {
        let text = r#"{"transforms":{"t":{"type":"filter","inputs":["a"],"conditon":"true"}}}"#;
        let e = serde_json::from_str::<PipelineConfig>(text).unwrap_err();
        let unknown = UnknownName::from_error(&e.to_string()).unwrap();
        assert_eq!(unknown.name, "conditon");
        assert_eq!(nearest(&unknown.name, unknown.valid.iter().map(String::as_str)), Some("condition"));
        assert_eq!(UnknownName::from_error("invalid type: null"), None);
    }

    #[test]
    fn a_whole_configuration_reads() {
        let text = r#"{
            "transforms": {
                "p": {"type":"parse","inputs":["s"],"format":"json","message":"msg","timestamp":"time"},
                "f": {"type":"filter","inputs":["p"],"condition":".severity_number >= 9"},
                "e": {"type":"set","inputs":["f"],"fields":{".attrs.env":"prod",".attrs.n":1}},
                "r": {"type":"rename","inputs":["e"],"fields":{".attrs.a":".stream.a"}},
                "d": {"type":"remove","inputs":["r"],"fields":[".resource.x"]}
            },
            "sinks": {"store": {"type":"store"}, "out": {"type":"stdout","inputs":["d"]}}
        }"#;
        let c: PipelineConfig = serde_json::from_str(text).unwrap();
        assert_eq!((c.transforms.len(), c.sinks.len()), (5, 2));
    }
}
