//! Templates of labels, annotations and messages: the language of Go's `text/template` as far as Prometheus and
//! Alertmanager document it, with the functions of both.
//!
//! Actions, pipelines, variables, `if`, `with`, `range`, `break`, `continue`, `define`, `template`, `block`, comments and
//! trim markers. Not here: `call`, complex numbers, methods beyond those of a time and of sorted pairs.
//!
//! Bounded: text, depth, steps and output each have a limit below.

mod exec;
mod format;
mod functions;
mod lex;
mod parse;
#[cfg(test)]
mod tests;
mod value;

use std::{collections::BTreeMap, sync::Arc};

pub use format::go_exponent;
pub use functions::query_escape;
use storage::model::Labels;
pub use value::Value;

/// Longest template text, bytes.
pub const TEXT_BYTES_MAX: usize = 256 << 10;

/// Nested blocks, parentheses and template calls.
const DEPTH_MAX: usize = 64;

/// Nodes and commands that one expansion may execute.
const STEPS_MAX: usize = 1_000_000;

/// Longest text that one expansion may write, bytes.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// One element of what `query` gives.
#[derive(Clone, Debug, PartialEq)]
pub struct QuerySample {
    pub labels: Arc<Labels>,
    pub value: f64,
}

/// What a template may ask of its surroundings.
pub trait Host {
    /// Evaluates an expression now; errors end the expansion.
    fn query(&self, expr: &str) -> Result<Vec<QuerySample>, String>;
    /// Where this process is reached from outside.
    fn external_url(&self) -> &str;
    /// The time of the evaluation, ms.
    fn now_ms(&self) -> i64;
}

/// A host that can be asked nothing.
pub struct NoHost;

impl Host for NoHost {
    fn query(&self, _: &str) -> Result<Vec<QuerySample>, String> {
        Err("queries cannot be made here".into())
    }

    fn external_url(&self) -> &str {
        ""
    }

    fn now_ms(&self) -> i64 {
        0
    }
}

/// A checked template. Equal when their texts are.
#[derive(Clone, Debug)]
pub struct Template {
    text: Arc<str>,
    /// `None`: the text stands for itself.
    tree: Option<Arc<parse::Tree>>,
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Variables that every alert's template has.
const ALERT_VARIABLES: [&str; 4] = ["$labels", "$externalLabels", "$externalURL", "$value"];

impl Template {
    /// A text without actions.
    pub fn plain(text: &str) -> Self {
        Template { text: text.into(), tree: None }
    }

    /// Parses a template of an alerting rule. The error says what is wrong and on which line of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with(text, &ALERT_VARIABLES)
    }

    /// Parses a template that starts with these variables.
    pub fn parse_with(text: &str, variables: &[&str]) -> Result<Self, String> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("template is longer than {TEXT_BYTES_MAX} bytes"));
        }
        if !text.contains("{{") {
            return Ok(Self::plain(text));
        }
        let tree = parse::parse(text, variables)?;
        Ok(Template { text: text.into(), tree: Some(Arc::new(tree)) })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether an expansion may ask [`Host::query`], which takes its time.
    pub fn queries(&self) -> bool {
        self.tree.as_ref().is_some_and(|t| t.calls_query)
    }

    /// The text for an alert. Errors are those of Go's templates in kind, not to the letter.
    pub fn expand(&self, data: &AlertData<'_>, host: &dyn Host) -> Result<String, String> {
        let Some(tree) = &self.tree else { return Ok(self.text.to_string()) };
        let labels = Value::of_labels(data.labels);
        let external = Value::of_labels(data.external_labels);
        let url = Value::text(host.external_url());
        let value = match data.value {
            AlertValue::Number(v) => Value::Float(v),
            AlertValue::Text(t) => Value::text(t),
        };
        let dot = Value::object([
            ("Labels", labels.clone()),
            ("ExternalLabels", external.clone()),
            ("ExternalURL", url.clone()),
            ("Value", value.clone()),
        ]);
        let variables =
            [("$labels", labels), ("$externalLabels", external), ("$externalURL", url), ("$value", value)];
        exec::run(tree, &tree.root, dot, &variables, &BTreeMap::new(), host)
    }

    /// The text for any data, with templates that others define.
    pub fn expand_with(&self, dot: Value, library: &Library, host: &dyn Host) -> Result<String, String> {
        let Some(tree) = &self.tree else { return Ok(self.text.to_string()) };
        exec::run(tree, &tree.root, dot, &[], &library.0, host)
    }
}

/// Templates by name, as `{{ define "name" }}` gives them.
#[derive(Clone, Debug, Default)]
pub struct Library(BTreeMap<String, Arc<parse::Tree>>);

impl Library {
    /// Adds what a text defines; later texts win.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let template = Template::parse_with(text, &[])?;
        if let Some(tree) = template.tree {
            self.0.extend(tree.defined.keys().map(|name| (name.clone(), tree.clone())));
        }
        Ok(())
    }
}

/// What a rule's template is about.
pub struct AlertData<'a> {
    pub labels: &'a Labels,
    pub external_labels: &'a Labels,
    pub value: AlertValue<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum AlertValue<'a> {
    Number(f64),
    /// A native histogram.
    Text(&'a str),
}
