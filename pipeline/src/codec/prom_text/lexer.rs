//! What both text formats share: a line's names, label sets, values and escapes.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::{DecodeError, Family, Label, float};

/// Labels of one series, exemplars of one sample: more is no exposition.
const LABELS_MAX: usize = 1024;

/// Bytes of a line that a message quotes.
const SHOWN_BYTES_MAX: usize = 40;

/// What stands between tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Blanks {
    /// Any number of spaces and tabs, also where none is needed.
    Any,
    /// Exactly one space where the format has one.
    One,
}

/// One line, read from the left.
pub(super) struct Line<'a> {
    text: &'a str,
    pub at: usize,
    blanks: Blanks,
}

pub(super) type Told<T> = Result<T, String>;

pub(super) const fn is_name_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b == b':'
}

const fn is_name(b: u8) -> bool {
    is_name_start(b) || b.is_ascii_digit()
}

impl<'a> Line<'a> {
    pub fn new(text: &'a str, blanks: Blanks) -> Self {
        Line { text, at: 0, blanks }
    }

    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    pub fn is_end(&self) -> bool {
        self.at == self.text.len()
    }

    pub fn upto(&self, at: usize) -> &'a str {
        &self.text[..at]
    }

    pub fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Skips blanks where any may stand.
    #[inline]
    pub fn skip(&mut self) {
        if self.blanks == Blanks::Any {
            while matches!(self.peek(), Some(b' ' | b'\t')) {
                self.at += 1;
            }
        }
    }

    /// What separates two tokens.
    #[inline]
    pub fn gap(&mut self, before: &str) -> Told<()> {
        match (self.blanks, self.peek()) {
            (Blanks::One, Some(b' ')) => {
                self.at += 1;
                if self.peek() == Some(b' ') {
                    return Err(format!("more than one space before {before}"));
                }
            }
            (Blanks::Any, Some(b' ' | b'\t')) => self.skip(),
            _ => return Err(format!("expected {before}, got {}", self.shown())),
        }
        Ok(())
    }

    pub fn eat(&mut self, b: u8) -> bool {
        let there = self.peek() == Some(b);
        self.at += usize::from(there);
        there
    }

    /// What stands here, for a message.
    #[cold]
    pub fn shown(&self) -> String {
        let rest = self.rest();
        if rest.is_empty() {
            return "end of line".to_owned();
        }
        let cut = rest.floor_char_boundary(SHOWN_BYTES_MAX);
        if cut < rest.len() { format!("{:?}...", &rest[..cut]) } else { format!("{rest:?}") }
    }

    /// A bare metric name; empty if none stands here.
    #[inline]
    pub fn name(&mut self) -> &'a str {
        let bytes = &self.text.as_bytes()[self.at..];
        let len = match bytes.first() {
            Some(b) if is_name_start(*b) => bytes.iter().take_while(|b| is_name(**b)).count(),
            _ => 0,
        };
        let name = &self.text[self.at..self.at + len];
        self.at += len;
        name
    }

    /// A text in quotes, its escapes undone.
    #[inline]
    pub fn quoted(&mut self, what: &str) -> Told<Cow<'a, str>> {
        if !self.eat(b'"') {
            return Err(format!("expected {what} in quotes, got {}", self.shown()));
        }
        let bytes = self.text.as_bytes();
        let from = self.at;
        let mut escapes = false;
        loop {
            match memchr2(b'"', b'\\', &bytes[self.at..]) {
                None => {
                    self.at = from - 1;
                    return Err(format!("the quotes of {what} are not closed: {}", self.shown()));
                }
                Some(n) if bytes[self.at + n] == b'"' => {
                    let text = &self.text[from..self.at + n];
                    self.at += n + 1;
                    return Ok(if escapes { Cow::Owned(unescape(text)) } else { Cow::Borrowed(text) });
                }
                Some(n) => {
                    escapes = true;
                    self.at = (self.at + n + 2).min(bytes.len());
                }
            }
        }
    }

    /// A word up to the next blank or the end.
    #[inline]
    pub fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let len = rest.bytes().position(|b| b == b' ' || b == b'\t').unwrap_or(rest.len());
        self.at += len;
        &rest[..len]
    }

    /// A sample's value.
    #[inline]
    pub fn value(&mut self, what: &str) -> Told<f64> {
        match self.blanks {
            // Nothing need be between `}` and a value.
            Blanks::Any => self.skip(),
            Blanks::One => self.gap(what)?,
        }
        if self.is_end() {
            return Err(format!("expected {what}, got end of line"));
        }
        let from = self.at;
        let word = self.word();
        float::value(word).ok_or_else(|| {
            self.at = from;
            format!("{what} is not a number: {}", self.shown())
        })
    }

    /// A metric family's name, bare or in quotes.
    pub fn family(&mut self) -> Told<Cow<'a, str>> {
        if self.peek() == Some(b'"') {
            return self.quoted("a metric name");
        }
        match self.name() {
            "" => Err(format!("expected a metric name, got {}", self.shown())),
            name => Ok(Cow::Borrowed(name)),
        }
    }

    /// A series: its name and labels, as `name{a="b"}` or `{"name", a="b"}`. Returns where it ends.
    #[inline]
    pub fn series(&mut self, labels: &mut Vec<Label<'a>>) -> Told<usize> {
        labels.clear();
        let name = self.name();
        if !name.is_empty() {
            labels.push((Cow::Borrowed("__name__"), Cow::Borrowed(name)));
        }
        let mut end = self.at;
        let before = self.at;
        self.skip();
        if self.peek() == Some(b'{') {
            self.label_set(labels, !name.is_empty())?;
            end = self.at;
        } else {
            self.at = before;
        }
        match labels.first() {
            Some((n, _)) if n == "__name__" => Ok(end),
            _ if end > 0 => Err("a series without a metric name".to_owned()),
            _ => Err(format!("expected a metric name, got {}", self.shown())),
        }
    }

    /// `{...}`. A quoted text without a value is the metric's name: unless it is `named` already, put in front.
    #[inline]
    pub fn label_set(&mut self, labels: &mut Vec<Label<'a>>, mut named: bool) -> Told<()> {
        self.at += 1;
        loop {
            self.skip();
            if self.eat(b'}') {
                return Ok(());
            }
            let name = match self.peek() {
                Some(b'"') => self.quoted("a label name")?,
                _ => match self.name() {
                    "" => return Err(format!("expected a label name or \"}}\", got {}", self.shown())),
                    name if name.contains(':') => return Err(format!("label name {name:?} has a colon; quote it")),
                    name => Cow::Borrowed(name),
                },
            };
            self.skip();
            if self.eat(b'=') {
                self.skip();
                let value = self.quoted("a label's value")?;
                if labels.len() >= LABELS_MAX {
                    return Err(format!("more than {LABELS_MAX} labels"));
                }
                if name.is_empty() {
                    return Err("a label without a name".to_owned());
                }
                labels.push((name, value));
            } else if matches!(self.peek(), Some(b',' | b'}')) && self.text.as_bytes()[self.at - 1] != b'=' {
                if named {
                    return Err(format!("expected a value of label {name:?}, or the metric name is given twice"));
                }
                if name.is_empty() {
                    return Err("the metric name is empty".to_owned());
                }
                named = true;
                labels.insert(0, (Cow::Borrowed("__name__"), name));
            } else {
                return Err(format!("expected \"=\" after label name {name:?}, got {}", self.shown()));
            }
            self.skip();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {}
                _ => return Err(format!("expected \",\" or \"}}\" after a label, got {}", self.shown())),
            }
        }
    }
}

/// Undoes `\\`, `\"` and `\n`; another backslash stays.
pub(super) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest.as_bytes()) {
        out.push_str(&rest[..at]);
        let (undone, len) = match rest.as_bytes().get(at + 1) {
            Some(b'\\') => ("\\", 2),
            Some(b'"') => ("\"", 2),
            Some(b'n') => ("\n", 2),
            _ => ("\\", 1),
        };
        out.push_str(undone);
        rest = &rest[at + len..];
    }
    out.push_str(rest);
    out
}

/// A help text, its escapes undone.
pub(super) fn help(text: &str) -> Cow<'_, str> {
    if text.contains('\\') { Cow::Owned(unescape(text)) } else { Cow::Borrowed(text) }
}

/// Normalises `le` and `quantile` where the type has them.
pub(super) fn normalise(metric_type: Option<&str>, labels: &mut [Label<'_>]) {
    let special = match metric_type {
        Some("histogram" | "gaugehistogram") => "le",
        Some("summary") => "quantile",
        _ => return,
    };
    for (name, value) in labels {
        if name == special
            && let Ok(number) = value.parse::<f64>()
        {
            let text = float::write_float(number);
            if *value != text {
                *value = Cow::Owned(text);
            }
        }
    }
}

/// What has been told of the family at hand.
#[derive(Default)]
pub(super) struct Current<'a>(Option<Family<'a>>);

impl<'a> Current<'a> {
    /// The family of a `# TYPE`, `# HELP` or `# UNIT`: the one at hand, or a new one.
    pub fn of(&mut self, name: Cow<'a, str>) -> &mut Family<'a> {
        if self.0.as_ref().is_none_or(|f| f.name != name) {
            self.0 = Some(Family { name, ..Family::default() });
        }
        self.0.get_or_insert_default()
    }

    pub fn metric_type(&self) -> Option<&'static str> {
        self.0.as_ref()?.metric_type
    }

    pub fn family(&self) -> Option<&Family<'a>> {
        self.0.as_ref()
    }
}

pub(super) fn at_line(at: usize) -> impl Fn(String) -> DecodeError {
    move |message| DecodeError { place: "line", at, message }
}
