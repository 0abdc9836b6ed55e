//! One rule.

use std::fmt;

use md5::{Digest as _, Md5};
use regex::Regex;
use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};
use storage::model::{Labels, re2};

use crate::error::ConfigError;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    #[default]
    Replace,
    Keep,
    Drop,
    KeepEqual,
    DropEqual,
    HashMod,
    LabelMap,
    LabelDrop,
    LabelKeep,
    Lowercase,
    Uppercase,
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Action::Replace => "replace",
            Action::Keep => "keep",
            Action::Drop => "drop",
            Action::KeepEqual => "keepequal",
            Action::DropEqual => "dropequal",
            Action::HashMod => "hashmod",
            Action::LabelMap => "labelmap",
            Action::LabelDrop => "labeldrop",
            Action::LabelKeep => "labelkeep",
            Action::Lowercase => "lowercase",
            Action::Uppercase => "uppercase",
        }
    }
}

/// A rule as it is written; what is absent has Prometheus' default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleConfig {
    pub source_labels: Vec<String>,
    #[serde(deserialize_with = "text")]
    pub separator: Option<String>,
    #[serde(deserialize_with = "text")]
    pub regex: Option<String>,
    pub modulus: Option<u64>,
    #[serde(deserialize_with = "text")]
    pub target_label: Option<String>,
    #[serde(deserialize_with = "text")]
    pub replacement: Option<String>,
    pub action: Action,
}

/// A text; YAML makes numbers and booleans of some (`regex: 200`).
fn text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = Option<String>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }
        fn visit_str<E: Error>(self, v: &str) -> Result<Self::Value, E> {
            Ok(Some(v.to_owned()))
        }
        fn visit_u64<E: Error>(self, v: u64) -> Result<Self::Value, E> {
            Ok(Some(v.to_string()))
        }
        fn visit_i64<E: Error>(self, v: i64) -> Result<Self::Value, E> {
            Ok(Some(v.to_string()))
        }
        fn visit_f64<E: Error>(self, v: f64) -> Result<Self::Value, E> {
            Ok(Some(v.to_string()))
        }
        fn visit_bool<E: Error>(self, v: bool) -> Result<Self::Value, E> {
            Ok(Some(v.to_string()))
        }
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }
    d.deserialize_any(Text)
}

const DEFAULT_SEPARATOR: &str = ";";
const DEFAULT_REGEX: &str = "(.*)";
const DEFAULT_REPLACEMENT: &str = "$1";

/// A checked rule.
pub struct Rule {
    source_labels: Vec<String>,
    separator: String,
    regex: Regex,
    modulus: u64,
    target_label: String,
    replacement: String,
    action: Action,
    /// `replace` with the default regex and nothing to expand: also an empty value sets the target.
    constant: bool,
}

impl Rule {
    /// `None` when there are errors, which are added.
    pub fn new(config: &RuleConfig, path: &str, errors: &mut Vec<ConfigError>) -> Option<Rule> {
        use Action::{DropEqual, HashMod, KeepEqual, LabelDrop, LabelKeep, LabelMap, Lowercase, Replace, Uppercase};
        let before = errors.len();
        let action = config.action;
        let mut error =
            |field: &str, message: String| errors.push(ConfigError::new(format!("{path}.{field}"), message));
        let target = config.target_label.clone().unwrap_or_default();
        if matches!(action, Replace | HashMod | Lowercase | Uppercase | KeepEqual | DropEqual) && target.is_empty() {
            error("target_label", format!("action `{}` needs a target_label", action.name()));
        }
        if action == HashMod && config.modulus.unwrap_or(0) == 0 {
            error("modulus", "action `hashmod` needs a modulus above 0".into());
        }
        if action == LabelMap && config.replacement.as_deref() == Some("") {
            error("replacement", "action `labelmap` needs a replacement that is a label name".into());
        }
        // What an action would ignore is refused, as Prometheus refuses it.
        let mut unused = |field: &str, set: bool| {
            if set {
                error(field, format!("action `{}` does not use `{field}`", action.name()));
            }
        };
        let set = |value: &Option<String>, default: &str| value.as_deref().is_some_and(|v| v != default);
        if matches!(action, KeepEqual | DropEqual | LabelDrop | LabelKeep) {
            unused("modulus", config.modulus.is_some_and(|m| m != 0));
            unused("separator", set(&config.separator, DEFAULT_SEPARATOR));
            unused("replacement", set(&config.replacement, DEFAULT_REPLACEMENT));
        }
        if matches!(action, KeepEqual | DropEqual) {
            unused("regex", set(&config.regex, DEFAULT_REGEX));
        }
        if matches!(action, LabelDrop | LabelKeep) {
            unused("source_labels", !config.source_labels.is_empty());
            unused("target_label", !target.is_empty());
        }
        let pattern = config.regex.as_deref().unwrap_or(DEFAULT_REGEX);
        let regex = match re2::compile(&format!("^(?s:{pattern})$")) {
            Ok(regex) => Some(regex),
            Err(e) => {
                error("regex", e);
                None
            }
        };
        if errors.len() > before {
            return None;
        }
        let replacement = config.replacement.clone().unwrap_or_else(|| DEFAULT_REPLACEMENT.into());
        let constant =
            action == Replace && pattern == DEFAULT_REGEX && !has_variable(&target) && !has_variable(&replacement);
        Some(Rule {
            source_labels: config.source_labels.clone(),
            separator: config.separator.clone().unwrap_or_else(|| DEFAULT_SEPARATOR.into()),
            regex: regex?,
            modulus: config.modulus.unwrap_or(1),
            target_label: target,
            replacement,
            action,
            constant,
        })
    }

    /// Whether the set stays.
    pub fn apply(&self, labels: &mut Labels) -> bool {
        let mut value = String::new();
        for (i, name) in self.source_labels.iter().enumerate() {
            if i > 0 {
                value.push_str(&self.separator);
            }
            value.push_str(labels.get(name).unwrap_or(""));
        }
        match self.action {
            Action::Keep => return self.regex.is_match(&value),
            Action::Drop => return !self.regex.is_match(&value),
            Action::KeepEqual => return labels.get(&self.target_label).unwrap_or("") == value,
            Action::DropEqual => return labels.get(&self.target_label).unwrap_or("") != value,
            Action::Replace => self.replace(labels, &value),
            Action::Lowercase => labels.set(&self.target_label, value.to_lowercase()),
            Action::Uppercase => labels.set(&self.target_label, value.to_uppercase()),
            Action::HashMod => {
                let digest: [u8; 16] = Md5::digest(value.as_bytes()).into();
                let low = u64::from_be_bytes(digest[8..].try_into().expect("8 bytes of 16"));
                labels.set(&self.target_label, (low % self.modulus).to_string());
            }
            Action::LabelMap => {
                let found: Vec<(String, String)> = labels
                    .iter()
                    .filter_map(|(name, value)| {
                        let captures = self.regex.captures(name)?;
                        let mut to = String::new();
                        captures.expand(&self.replacement, &mut to);
                        Some((to, value.to_owned()))
                    })
                    .collect();
                for (name, value) in found.into_iter().filter(|(name, _)| !name.is_empty()) {
                    labels.set(&name, value);
                }
            }
            Action::LabelDrop => self.retain(labels, false),
            Action::LabelKeep => self.retain(labels, true),
        }
        true
    }

    fn replace(&self, labels: &mut Labels, value: &str) {
        if self.constant && value.is_empty() {
            labels.set(&self.target_label, self.replacement.as_str());
            return;
        }
        let Some(captures) = self.regex.captures(value) else { return };
        let (mut target, mut new) = (String::new(), String::new());
        captures.expand(&self.target_label, &mut target);
        if target.is_empty() {
            return;
        }
        captures.expand(&self.replacement, &mut new);
        labels.set(&target, new);
    }

    /// Keeps the labels whose name matches, or those whose name does not.
    fn retain(&self, labels: &mut Labels, matching: bool) {
        let leaving: Vec<String> =
            labels.iter().filter(|(n, _)| self.regex.is_match(n) != matching).map(|(n, _)| n.to_owned()).collect();
        for name in leaving {
            labels.remove(&name);
        }
    }
}

/// Whether a template names a capture.
fn has_variable(template: &str) -> bool {
    template.contains('$')
}
