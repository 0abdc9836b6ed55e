//! Text to [`Condition`], with a caret at what was not understood.

use regex::RegexBuilder;

use super::{
    COLUMNS, CONDITION_BYTES_MAX, CONDITION_DEPTH_MAX, CONDITION_REGEX_BYTES_MAX, Compare, Condition, ConditionError,
    Field, Literal, MEMBERS, Node, Signals, Test, field_names,
};
use crate::error::nearest;

const OPERATORS: [&str; 10] = ["==", "!=", "<", "<=", ">", ">=", "contains", "starts_with", "ends_with", "matches"];

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    signals: Signals,
}

type Parsed<T> = Result<T, ConditionError>;

pub(super) fn parse(text: &str) -> Parsed<Condition> {
    if text.len() > CONDITION_BYTES_MAX {
        return Err(ConditionError {
            message: format!("the condition is longer than {CONDITION_BYTES_MAX} bytes"),
            line: String::new(),
            column: 0,
            nearest: None,
        });
    }
    let mut p = Parser { text, at: 0, depth: 0, signals: Signals::ALL };
    let root = p.or()?;
    p.blank();
    if p.at < text.len() {
        return Err(p.error(p.at, "expected `and`, `or` or the end"));
    }
    Ok(Condition { root, signals: p.signals })
}

/// One field and nothing else, with its signals.
pub(super) fn field_alone(text: &str) -> Parsed<(Field, Signals)> {
    let mut p = Parser { text, at: 0, depth: 0, signals: Signals::ALL };
    let field = p.field()?;
    p.blank();
    if p.at < text.len() {
        return Err(p.error(p.at, "expected the end of the field; quote a key with blanks or operators in it"));
    }
    Ok((field, p.signals))
}

impl Parser<'_> {
    fn error(&self, at: usize, message: impl Into<String>) -> ConditionError {
        let at = at.min(self.text.len());
        let start = self.text[..at].rfind('\n').map_or(0, |i| i + 1);
        let end = self.text[at..].find('\n').map_or(self.text.len(), |i| at + i);
        ConditionError {
            message: message.into(),
            line: self.text[start..end].replace('\t', " "),
            column: self.text[start..at].chars().count(),
            nearest: None,
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn blank(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// Takes a sign.
    fn sign(&mut self, sign: &str) -> bool {
        self.blank();
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len();
        }
        found
    }

    /// The word at hand, not taken.
    fn peek_word(&mut self) -> &str {
        self.blank();
        let rest = self.rest();
        &rest[..rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len())]
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self.peek_word() == word;
        if found {
            self.at += word.len();
        }
        found
    }

    fn or(&mut self) -> Parsed<Node> {
        let mut all = vec![self.and()?];
        while self.word("or") || self.sign("||") {
            all.push(self.and()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Or(all) })
    }

    fn and(&mut self) -> Parsed<Node> {
        let mut all = vec![self.not()?];
        while self.word("and") || self.sign("&&") {
            all.push(self.not()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::And(all) })
    }

    fn not(&mut self) -> Parsed<Node> {
        self.blank();
        let at = self.at;
        self.depth += 1;
        if self.depth > CONDITION_DEPTH_MAX {
            return Err(self.error(at, format!("the condition is nested deeper than {CONDITION_DEPTH_MAX}")));
        }
        let node = if self.word("not") || (!self.rest().starts_with("!=") && self.sign("!")) {
            Node::Not(Box::new(self.not()?))
        } else if self.sign("(") {
            let inner = self.or()?;
            if !self.sign(")") {
                return Err(self.error(self.at, "expected `)`"));
            }
            inner
        } else {
            self.test()?
        };
        self.depth -= 1;
        Ok(node)
    }

    fn test(&mut self) -> Parsed<Node> {
        if self.word("exists") {
            let bracket = self.sign("(");
            let field = self.field()?;
            if bracket && !self.sign(")") {
                return Err(self.error(self.at, "expected `)`"));
            }
            return Ok(Node::Test(field, Test::Exists));
        }
        let field = self.field()?;
        let test = self.operation()?;
        Ok(Node::Test(field, test))
    }

    fn field(&mut self) -> Parsed<Field> {
        self.blank();
        let start = self.at;
        if !self.sign(".") {
            let word = self.peek_word().to_owned();
            let dotted = format!(".{word}");
            let mut e = self.error(start, "expected a field such as `.body`");
            e.nearest = nearest(&dotted, field_names().iter().map(String::as_str)).map(str::to_owned);
            return Err(self.suggest(e));
        }
        let name = self.peek_word().to_owned();
        self.at += name.len();
        let field = if let Some(f) = MEMBERS.iter().find(|f| f.name == name) {
            if !self.rest().starts_with('.') {
                return Err(self.error(self.at, format!("`.{name}` needs a key, for example `.{name}.key`")));
            }
            self.at += 1;
            let key = self.key()?;
            self.signals = self.signals.and(f.signals);
            Field::Member { column: f.column, key }
        } else if let Some(f) = COLUMNS.iter().find(|f| f.name == name) {
            self.signals = self.signals.and(f.signals);
            Field::Column(f.column)
        } else {
            let mut e = self.error(start, format!("unknown field `.{name}`"));
            let names = field_names();
            e.nearest = nearest(&format!(".{name}"), names.iter().map(String::as_str)).map(str::to_owned);
            if e.nearest.is_none() {
                e.message = format!("{}; there are {}", e.message, names.join(" "));
            }
            return Err(self.suggest(e));
        };
        if self.signals.is_none() {
            return Err(self.error(start, format!("no signal has `.{name}` and the other fields of the condition")));
        }
        Ok(field)
    }

    fn suggest(&self, mut e: ConditionError) -> ConditionError {
        if let Some(n) = &e.nearest {
            e.message = format!("{}; did you mean `{n}`?", e.message);
        }
        e
    }

    fn key(&mut self) -> Parsed<String> {
        let start = self.at;
        if self.rest().starts_with(['"', '\'']) {
            return self.quoted();
        }
        let rest = self.rest();
        let end = rest.find(|c: char| c.is_whitespace() || "()=!<>\"'&|,".contains(c)).unwrap_or(rest.len());
        let key = rest[..end].to_owned();
        if key.is_empty() {
            return Err(self.error(start, "expected a key"));
        }
        self.at += end;
        Ok(key)
    }

    fn operation(&mut self) -> Parsed<Test> {
        self.blank();
        let start = self.at;
        let compare = [
            ("==", Compare::Eq),
            ("!=", Compare::Ne),
            ("<=", Compare::Le),
            (">=", Compare::Ge),
            ("<", Compare::Lt),
            (">", Compare::Gt),
        ];
        for (sign, c) in compare {
            if self.sign(sign) {
                return Ok(Test::Compare(c, self.literal()?));
            }
        }
        let word = self.peek_word().to_owned();
        if !OPERATORS.contains(&word.as_str()) {
            let mut e = self.error(start, format!("expected one of {}", OPERATORS.join(" ")));
            if !word.is_empty() {
                e.nearest = nearest(&word, OPERATORS).map(str::to_owned);
            } else if self.rest().starts_with('=') {
                e.nearest = Some("==".into());
            }
            return Err(self.suggest(e));
        }
        self.at += word.len();
        self.blank();
        let at = self.at;
        let Literal::Text(text) = self.literal()? else {
            return Err(self.error(at, format!("`{word}` needs a quoted text")));
        };
        Ok(match word.as_str() {
            "contains" => Test::Contains(text),
            "starts_with" => Test::StartsWith(text),
            "ends_with" => Test::EndsWith(text),
            _ => {
                let built = RegexBuilder::new(&text).size_limit(CONDITION_REGEX_BYTES_MAX).build();
                Test::Matches(built.map_err(|e| {
                    let reason = e.to_string();
                    let last = reason.lines().last().unwrap_or_default();
                    self.error(at, format!("invalid regular expression: {}", last.trim_start_matches("error: ")))
                })?)
            }
        })
    }

    fn literal(&mut self) -> Parsed<Literal> {
        self.blank();
        let start = self.at;
        if self.rest().starts_with(['"', '\'']) {
            return self.quoted().map(Literal::Text);
        }
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || "+-._".contains(c))).unwrap_or(rest.len());
        let word = rest[..end].to_owned();
        let literal = match word.as_str() {
            "true" => Literal::Bool(true),
            "false" => Literal::Bool(false),
            _ => match word.parse::<f64>() {
                // Words such as `nan` and `inf` parse too, but are no numbers here.
                Ok(n) if n.is_finite() && word.contains(|c: char| c.is_ascii_digit()) => Literal::Number(n),
                _ => return Err(self.error(start, "expected a quoted text, a number, `true` or `false`")),
            },
        };
        self.at += end;
        Ok(literal)
    }

    /// A text in either quote; the escapes are `\\ \" \' \n \r \t`, any other backslash stays (for expressions).
    fn quoted(&mut self) -> Parsed<String> {
        let start = self.at;
        let mut chars = self.text[start..].char_indices();
        let quote = chars.next().map_or('"', |(_, c)| c);
        let mut out = String::new();
        while let Some((i, c)) = chars.next() {
            match c {
                _ if c == quote => {
                    self.at = start + i + c.len_utf8();
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 'r')) => out.push('\r'),
                    Some((_, 't')) => out.push('\t'),
                    Some((_, c @ ('\\' | '"' | '\''))) => out.push(c),
                    Some((_, c)) => out.extend(['\\', c]),
                    None => break,
                },
                c => out.push(c),
            }
        }
        Err(self.error(start, "a text that is not closed"))
    }
}
