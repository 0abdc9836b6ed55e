//! What is wrong with an RE2 expression, in the words of Go's `regexp`: clients show them, people search for them.
//!
//! Not here: whether an expression is taken. It is asked only of one that did not compile.

use regex::Regex;

/// `error parsing regexp: missing closing ): `a(`` of the first fault; `None` if there is none that RE2 knows of.
pub fn fault(re2: &str) -> Option<String> {
    let (what, where_) = Scan { re2, at: 0 }.run().err()?;
    Some(format!("error parsing regexp: {what}: `{where_}`"))
}

/// What, and the part of the expression.
type Fault<'a> = (&'static str, &'a str);

const REPEATED_MAX: u32 = 1000;

/// `[[:alnum:]]` and so on.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
    "word", "xdigit",
];

struct Scan<'a> {
    re2: &'a str,
    at: usize,
}

impl<'a> Scan<'a> {
    fn rest(&self) -> &'a str {
        &self.re2[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn since(&self, start: usize) -> &'a str {
        &self.re2[start..self.at]
    }

    fn run(&mut self) -> Result<(), Fault<'a>> {
        let mut depth = 0_usize;
        // Whether there is something to repeat, and where the repetition began that is just before.
        let (mut something, mut repeated) = (false, None);
        while let Some(c) = self.peek() {
            let start = self.at;
            let before = repeated.take();
            match c {
                '(' => {
                    something = self.group(&mut depth)? && something;
                }
                '|' => {
                    self.at += 1;
                    something = false;
                }
                ')' => {
                    depth = depth.checked_sub(1).ok_or(("unexpected )", self.re2))?;
                    self.at += 1;
                    something = true;
                }
                '*' | '+' | '?' => {
                    self.at += 1;
                    repeated = Some(self.repetition(start, before, something)?);
                }
                '{' => match self.counts() {
                    None => {
                        self.at = start + 1;
                        something = true;
                    }
                    Some((least, most)) => {
                        if least > REPEATED_MAX || most.is_some_and(|m| m > REPEATED_MAX || least > m) {
                            return Err(("invalid repeat count", self.since(start)));
                        }
                        repeated = Some(self.repetition(start, before, something)?);
                    }
                },
                '[' => {
                    self.class()?;
                    something = true;
                }
                '\\' => {
                    self.backslash()?;
                    something = true;
                }
                _ => {
                    self.next();
                    something = true;
                }
            }
        }
        if depth > 0 { Err(("missing closing )", self.re2)) } else { Ok(()) }
    }

    /// After an operator that began at `start`.
    fn repetition(&mut self, start: usize, before: Option<usize>, something: bool) -> Result<usize, Fault<'a>> {
        if self.rest().starts_with('?') {
            self.at += 1;
        }
        match before {
            Some(first) => Err(("invalid nested repetition operator", self.since(first))),
            None if !something => Err(("missing argument to repetition operator", self.since(start))),
            None => Ok(start),
        }
    }

    /// An opening parenthesis. Whether it only sets flags.
    fn group(&mut self, depth: &mut usize) -> Result<bool, Fault<'a>> {
        let start = self.at;
        let rest = self.rest();
        if !rest.starts_with("(?") {
            self.at += 1;
            *depth += 1;
            return Ok(false);
        }
        let named =
            rest.strip_prefix("(?P<").or_else(|| rest.strip_prefix("(?<")).filter(|n| !n.starts_with(['=', '!']));
        if let Some(named) = named {
            let Some(end) = named.find('>') else { return Err(("invalid named capture", rest)) };
            self.at += rest.len() - named.len() + end + 1;
            if end == 0 || !named[..end].chars().all(|c| c == '_' || c.is_ascii_alphanumeric()) {
                return Err(("invalid named capture", self.since(start)));
            }
            *depth += 1;
            return Ok(false);
        }
        self.at += 2;
        let mut negated = false;
        loop {
            match self.next() {
                Some('i' | 'm' | 's' | 'U') => {}
                Some('-') if !negated => negated = true,
                Some(':') => {
                    *depth += 1;
                    return Ok(false);
                }
                Some(')') => return Ok(true),
                Some(_) => return Err(("invalid or unsupported Perl syntax", self.since(start))),
                None => return Err(("missing closing )", self.re2)),
            }
        }
    }

    /// `{2}`, `{2,}` or `{2,3}`; `None`: the brace is itself.
    fn counts(&mut self) -> Option<(u32, Option<u32>)> {
        let inner = &self.rest()[1..self.rest().find('}')?];
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            (plain && (text.len() == 1 || !text.starts_with('0'))).then(|| text.parse().unwrap_or(u32::MAX))
        };
        let counts = match inner.split_once(',') {
            None => number(inner).map(|n| (n, Some(n))),
            Some((least, "")) => number(least).map(|n| (n, None)),
            Some((least, most)) => number(least).zip(number(most).map(Some)),
        }?;
        self.at += inner.len() + 2;
        Some(counts)
    }

    fn class(&mut self) -> Result<(), Fault<'a>> {
        let start = self.at;
        let unclosed = ("missing closing ]", &self.re2[start..]);
        self.at += 1;
        if self.peek() == Some('^') {
            self.at += 1;
        }
        let mut first = true;
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return Err(unclosed);
            }
            if rest.starts_with(']') && !first {
                self.at += 1;
                return Ok(());
            }
            first = false;
            if let Some(end) = rest.strip_prefix("[:").and_then(|r| r.find(":]")) {
                let name = &rest[..end + 4];
                self.at += name.len();
                if !CLASSES.contains(&rest[2..end + 2].trim_start_matches('^')) {
                    return Err(("invalid character class range", name));
                }
                continue;
            }
            if rest.starts_with("\\p") || rest.starts_with("\\P") {
                self.property()?;
                continue;
            }
            if rest.starts_with('\\') && rest[1..].starts_with(['d', 's', 'w', 'D', 'S', 'W']) {
                self.at += 2;
                continue;
            }
            let from = self.at;
            let low = self.class_char(unclosed)?;
            let dash = self.rest();
            if dash.len() >= 2 && dash.starts_with('-') && !dash[1..].starts_with(']') {
                self.at += 1;
                let high = self.class_char(unclosed)?;
                if high < low {
                    return Err(("invalid character class range", self.since(from)));
                }
            }
        }
    }

    fn class_char(&mut self, unclosed: Fault<'a>) -> Result<char, Fault<'a>> {
        match self.peek() {
            None => Err(unclosed),
            Some('\\') => self.escape(),
            Some(c) => {
                self.next();
                Ok(c)
            }
        }
    }

    /// A backslash outside classes.
    fn backslash(&mut self) -> Result<(), Fault<'a>> {
        let rest = &self.rest()[1..];
        match rest.chars().next() {
            Some('A' | 'b' | 'B' | 'z' | 'd' | 's' | 'w' | 'D' | 'S' | 'W') => self.at += 2,
            Some('Q') => {
                let quoted = rest.find("\\E").map_or(rest.len(), |n| n + 2);
                self.at += 1 + quoted;
            }
            Some('p' | 'P') => self.property()?,
            _ => {
                self.escape()?;
            }
        }
        Ok(())
    }

    /// `\pL`, `\p{Greek}`.
    fn property(&mut self) -> Result<(), Fault<'a>> {
        let start = self.at;
        let rest = self.rest();
        self.at += 2;
        if self.next() == Some('{') {
            let Some(end) = rest.find('}') else { return Err(("invalid character class range", rest)) };
            self.at = start + end + 1;
        }
        match Regex::new(self.since(start)) {
            Ok(_) => Ok(()),
            Err(_) => Err(("invalid character class range", self.since(start))),
        }
    }

    /// A backslash and the one character it stands for.
    fn escape(&mut self) -> Result<char, Fault<'a>> {
        let start = self.at;
        self.at += 1;
        let Some(c) = self.next() else { return Err(("trailing backslash at end of expression", "")) };
        let octal = |c: Option<char>| c.and_then(|c| c.to_digit(8));
        match c {
            '0'..='7' if c == '0' || octal(self.peek()).is_some() => {
                let mut code = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = octal(self.peek()) else { break };
                    code = code * 8 + digit;
                    self.at += 1;
                }
                char::from_u32(code)
            }
            'x' => self.hex(),
            'a' => Some('\x07'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => Some(c),
            _ => None,
        }
        .ok_or_else(|| ("invalid escape sequence", self.since(start)))
    }

    /// After `\x`.
    fn hex(&mut self) -> Option<char> {
        let braced = self.next()?;
        let mut code = braced.to_digit(16);
        if braced != '{' {
            let low = self.next()?.to_digit(16)?;
            return char::from_u32(code? * 16 + low);
        }
        code = None;
        loop {
            match self.next()? {
                '}' => return char::from_u32(code?),
                c => {
                    let digit = c.to_digit(16)?;
                    code = Some(code.unwrap_or(0) * 16 + digit).filter(|n| *n <= u32::from(char::MAX));
                    code?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_told_in_the_words_of_go() {
        for (re2, text) in [
            ("(", "missing closing ): `(`"),
            ("a(b", "missing closing ): `a(b`"),
            ("a)b", "unexpected ): `a)b`"),
            ("[a", "missing closing ]: `[a`"),
            ("x[]", "missing closing ]: `[]`"),
            ("*", "missing argument to repetition operator: `*`"),
            ("(+?)", "missing argument to repetition operator: `+?`"),
            ("a|*", "missing argument to repetition operator: `*`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a{1}{2}", "invalid nested repetition operator: `{1}{2}`"),
            ("x{1001}", "invalid repeat count: `{1001}`"),
            ("x{2,1}", "invalid repeat count: `{2,1}`"),
            ("[z-a]", "invalid character class range: `z-a`"),
            ("[[:foo:]]", "invalid character class range: `[:foo:]`"),
            ("\\pX", "invalid character class range: `\\pX`"),
            ("\\p{Nonsense}", "invalid character class range: `\\p{Nonsense}`"),
            ("a\\", "trailing backslash at end of expression: ``"),
            ("\\8", "invalid escape sequence: `\\8`"),
            ("\\1", "invalid escape sequence: `\\1`"),
            ("\\q", "invalid escape sequence: `\\q`"),
            ("\\x{110000}", "invalid escape sequence: `\\x{110000`"),
            ("(?P<n", "invalid named capture: `(?P<n`"),
            ("(?P<a-b>x)", "invalid named capture: `(?P<a-b>`"),
            ("(?z)", "invalid or unsupported Perl syntax: `(?z`"),
            ("(?=x)", "invalid or unsupported Perl syntax: `(?=`"),
        ] {
            assert_eq!(fault(re2).unwrap_or_default(), format!("error parsing regexp: {text}"), "{re2}");
        }
        for good in [
            "", "a{,2}", "a{x", "[]a]", "[a-]", "[^]]", "\\Q(\\E", "(?i)a", "(?i:a)*", "\\12", "[\\d-z]", "\\pL",
            "a?b*", "^*", "a{2}?",
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
    }
}
