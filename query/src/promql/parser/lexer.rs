//! PromQL's tokens, up to the end or to the first thing that is none.
//!
//! What is a token depends on the brackets it stands in, and what is wrong with one is told with the words Prometheus
//! tells it. It only counts if the parser gets that far: what it finds wrong before that comes first. Not here: what
//! words mean.

use crate::{
    promql::print::quoted,
    syntax::{Kind, QUERY_BYTES_MAX, Span, SyntaxError, Token},
};

/// The last token is [`Kind::End`]; it stands where reading stopped.
pub(super) struct Lexed {
    pub tokens: Vec<Token>,
    /// Why reading stopped before the end of the text.
    pub failure: Option<String>,
}

/// Errors on a text that is too long to be looked at.
pub(super) fn lex(text: &str) -> Result<Lexed, SyntaxError> {
    if text.len() > QUERY_BYTES_MAX {
        let message = format!("query of {} bytes is longer than the limit of {QUERY_BYTES_MAX} bytes", text.len());
        return Err(SyntaxError { message, span: Span::default(), line: 1, column: 1 });
    }
    let mut lexer = Lexer {
        text,
        at: 0,
        start: 0,
        parens: 0,
        brace: false,
        bracket: false,
        duration: false,
        colon: false,
        number: false,
        tokens: Vec::with_capacity(text.len() / 4 + 1),
    };
    let failure = loop {
        match lexer.token() {
            Ok(true) => {}
            Ok(false) => break None,
            Err(why) => break Some(why),
        }
    };
    let end = Span::new(lexer.start, lexer.start);
    lexer.tokens.push(Token { kind: Kind::End, span: end });
    Ok(Lexed { tokens: lexer.tokens, failure })
}

pub(super) fn is_letter(c: char) -> bool {
    c == '_' || c.is_ascii_alphabetic()
}

fn is_word(c: char) -> bool {
    is_letter(c) || c.is_ascii_digit()
}

/// Operators outside braces, longer before shorter where one begins another.
const OPERATORS: [&str; 16] = ["==", "!=", "<=", ">=", "</", ">/", "<", ">", "=", "+", "-", "*", "/", "%", "^", "@"];

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// Where the token that is read began.
    start: usize,
    parens: usize,
    brace: bool,
    bracket: bool,
    /// In brackets, with no number yet.
    duration: bool,
    /// In brackets, after their colon.
    colon: bool,
    /// Brackets have held a number.
    number: bool,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Takes the next character if it is one of these.
    fn accept(&mut self, set: &str) -> bool {
        let hit = self.is(set);
        if hit {
            self.at += 1;
        }
        hit
    }

    fn is(&self, set: &str) -> bool {
        self.peek().is_some_and(|c| set.contains(c))
    }

    fn emit(&mut self, kind: Kind) {
        self.tokens.push(Token { kind, span: Span::new(self.start, self.at) });
        self.start = self.at;
    }

    fn punct(&mut self, text: &'static str) -> Result<bool, String> {
        self.at = self.start + text.len();
        self.emit(Kind::Punct(text));
        Ok(true)
    }

    /// Reads one token; `false` at the end.
    fn token(&mut self) -> Result<bool, String> {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\n' | '\r') => self.at += 1,
                Some('#') if !self.duration => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find(['\n', '\r']).unwrap_or(rest.len());
                }
                _ => break,
            }
        }
        self.start = self.at;
        match () {
            () if self.brace => self.in_braces(),
            () if self.duration => self.in_duration(),
            () => self.statement(),
        }
    }

    fn statement(&mut self) -> Result<bool, String> {
        let Some(c) = self.peek() else {
            return match () {
                () if self.parens > 0 => Err("unclosed left parenthesis".into()),
                () if self.bracket => Err("unclosed left bracket".into()),
                () => Ok(false),
            };
        };
        let after = self.text[self.at + c.len_utf8()..].chars().next();
        match c {
            '=' if after == Some('~') => return Err("unexpected character after '=': '~'".into()),
            '!' if after != Some('=') => {
                return Err(format!("unexpected character after '!': {}", quoted_char(after)));
            }
            '"' | '\'' => return self.string(c),
            '`' => return self.raw_string(),
            '(' | ')' => return self.paren(c),
            ',' => return self.punct(","),
            '{' => {
                self.brace = true;
                return self.punct("{");
            }
            '[' if self.bracket => return Err("unexpected left bracket '['".into()),
            '[' => {
                (self.bracket, self.duration, self.colon) = (true, true, false);
                return self.punct("[");
            }
            ']' if !self.bracket => return Err("unexpected right bracket ']'".into()),
            ']' => {
                self.bracket = false;
                return self.punct("]");
            }
            ':' if self.bracket && self.colon => return Err("unexpected colon ':'".into()),
            ':' if self.bracket => {
                self.colon = true;
                return self.punct(":");
            }
            _ if is_letter(c) && self.bracket => {
                if self.duration_word() {
                    return Ok(true);
                }
                return Err(format!("unexpected character: {c:?}, expected ':'"));
            }
            _ if is_letter(c) || c == ':' => return self.word(),
            _ if c.is_ascii_digit() || (c == '.' && after.is_some_and(|c| c.is_ascii_digit())) => {
                return self.number();
            }
            _ => {}
        }
        match OPERATORS.into_iter().find(|p| self.text[self.at..].starts_with(*p)) {
            Some(operator) => self.punct(operator),
            None => Err(format!("unexpected character: {}", quoted_char(Some(c)))),
        }
    }

    /// Fails after so many bytes.
    fn taken(&mut self, bytes: usize, why: &str) -> Result<bool, String> {
        self.at += bytes;
        self.start = self.at;
        Err(why.into())
    }

    fn paren(&mut self, c: char) -> Result<bool, String> {
        if c == '(' {
            self.parens += 1;
            return self.punct("(");
        }
        match self.parens.checked_sub(1) {
            Some(open) => {
                self.parens = open;
                self.punct(")")
            }
            None => self.taken(1, "unexpected right parenthesis ')'"),
        }
    }

    fn in_braces(&mut self) -> Result<bool, String> {
        let Some(c) = self.peek() else { return Err("unexpected end of input inside braces".into()) };
        let after = self.text[self.at + c.len_utf8()..].chars().next();
        match c {
            '"' | '\'' => self.string(c),
            '`' => self.raw_string(),
            ',' => self.punct(","),
            '=' => self.punct(if after == Some('~') { "=~" } else { "=" }),
            '!' => match after {
                Some('~') => self.punct("!~"),
                Some('=') => self.punct("!="),
                _ => Err(format!("unexpected character after '!' inside braces: {}", quoted_char(after))),
            },
            '{' => Err("unexpected left brace '{'".into()),
            '}' => {
                self.brace = false;
                self.punct("}")
            }
            _ if is_letter(c) => {
                while self.peek().is_some_and(is_word) {
                    self.at += 1;
                }
                self.emit(Kind::Ident);
                Ok(true)
            }
            _ => Err(format!("unexpected character inside braces: {}", quoted_char(Some(c)))),
        }
    }

    /// In brackets, as far as their first number.
    fn in_duration(&mut self) -> Result<bool, String> {
        let Some(c) = self.peek() else { return Err("unexpected end of input in duration expression".into()) };
        let after = self.text[self.at + c.len_utf8()..].chars().next();
        match c {
            ']' => {
                (self.bracket, self.duration) = (false, false);
                self.punct("]")
            }
            ':' => {
                if !self.number {
                    return self.taken(1, "unexpected colon before duration in duration expression");
                }
                if std::mem::replace(&mut self.colon, true) {
                    return self.taken(1, "unexpected repeated colon in duration expression");
                }
                self.punct(":")
            }
            '(' | ')' => self.paren(c),
            '+' => self.punct("+"),
            '-' => self.punct("-"),
            '*' => self.punct("*"),
            '/' => self.punct("/"),
            '%' => self.punct("%"),
            '^' => self.punct("^"),
            ',' => self.punct(","),
            _ if c.is_ascii_digit() || (c == '.' && after.is_some_and(|c| c.is_ascii_digit())) => {
                (self.number, self.duration) = (true, false);
                self.number()
            }
            _ if is_letter(c) && self.duration_word() => Ok(true),
            _ => Err(format!("unexpected character in duration expression: {}", quoted_char(Some(c)))),
        }
    }

    /// The words there are in brackets.
    fn duration_word(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
        let hit = ["step", "range", "min_of", "max_of"].iter().any(|w| w.eq_ignore_ascii_case(&rest[..len]));
        if hit {
            self.at += len;
            self.emit(Kind::Ident);
        }
        hit
    }

    fn word(&mut self) -> Result<bool, String> {
        while self.peek().is_some_and(|c| is_word(c) || c == ':') {
            self.at += 1;
        }
        let text = &self.text[self.start..self.at];
        let number = ["inf", "nan"].iter().any(|w| w.eq_ignore_ascii_case(text));
        self.emit(if number { Kind::Number } else { Kind::Ident });
        Ok(true)
    }

    fn raw_string(&mut self) -> Result<bool, String> {
        let end = self.text[self.at + 1..].find('`').ok_or("unterminated raw string")?;
        self.at += end + 2;
        self.emit(Kind::String);
        Ok(true)
    }

    fn string(&mut self, quote: char) -> Result<bool, String> {
        self.at += 1;
        loop {
            match self.next() {
                None | Some('\n') => return Err("unterminated quoted string".into()),
                Some('\\') => self.escape(quote)?,
                Some(c) if c == quote => break,
                Some(_) => {}
            }
        }
        self.emit(Kind::String);
        Ok(true)
    }

    /// After a backslash.
    fn escape(&mut self, quote: char) -> Result<(), String> {
        const CUT: &str = "escape sequence not terminated";
        let c = self.peek().ok_or(CUT)?;
        let (digits, base, most) = match c {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' => (0, 10, 0),
            _ if c == quote => (0, 10, 0),
            '0'..='7' => (3, 8, 255),
            'x' => (2, 16, 255),
            'u' => (4, 16, u32::from(char::MAX)),
            'U' => (8, 16, u32::from(char::MAX)),
            _ => return Err(format!("unknown escape sequence {}", code_point(c))),
        };
        if digits != 3 {
            self.next();
        }
        let mut value = 0_u32;
        for _ in 0..digits {
            let c = self.next().ok_or(CUT)?;
            let Some(digit) = c.to_digit(base) else {
                return Err(format!("illegal character {} in escape sequence", code_point(c)));
            };
            value = value.wrapping_mul(base).wrapping_add(digit);
        }
        if value > most || (0xd800..0xe000).contains(&value) {
            return Err("escape sequence is an invalid Unicode code point".into());
        }
        Ok(())
    }

    fn number(&mut self) -> Result<bool, String> {
        if !self.plain_number() && !self.rest_of_duration() {
            let read = quoted(&self.text[self.start..self.at]);
            return Err(format!("bad number or duration syntax: {read}"));
        }
        self.emit(Kind::Number);
        Ok(true)
    }

    /// Takes what can be a number, well-formed or not. `false`: it goes on as something else.
    fn plain_number(&mut self) -> bool {
        let mut digits = "0123456789";
        if self.accept("0") && self.accept("xX") {
            self.accept("_");
            digits = "0123456789abcdefABCDEF";
        }
        let hex = digits.len() > 10;
        self.accept(".");
        self.accept(digits);
        let (mut dot, mut exponent) = (false, false);
        loop {
            match () {
                () if self.is(digits) => while self.accept(digits) {},
                () if self.accept(".") => {
                    if std::mem::replace(&mut dot, true) || self.accept("_.") || hex {
                        return false;
                    }
                }
                () if self.accept("_") => {
                    if self.accept("._eE") || self.peek().is_none() {
                        return false;
                    }
                }
                () if self.accept("eE") => {
                    if std::mem::replace(&mut exponent, true) {
                        return false;
                    }
                    self.accept("+-");
                    if self.accept("._eE") || self.peek().is_none() {
                        return false;
                    }
                }
                () => return !self.peek().is_some_and(is_word),
            }
        }
    }

    /// After the first digits of a duration. What stops it is taken with it.
    fn rest_of_duration(&mut self) -> bool {
        if !self.accept("smhdwy") {
            return false;
        }
        self.accept("s");
        while self.accept("0123456789") {
            while self.accept("0123456789") {}
            if !self.accept("smhdw") {
                return false;
            }
            self.accept("s");
        }
        let goes_on = self.peek().is_some_and(is_word);
        if goes_on {
            self.next();
        }
        !goes_on
    }
}

/// Between single quotes; what is not there is the replacement character.
fn quoted_char(c: Option<char>) -> String {
    let c = c.unwrap_or(char::REPLACEMENT_CHARACTER);
    match c {
        '\'' => "'\\''".into(),
        '"' => "'\"'".into(),
        c => {
            let quoted = quoted(c.encode_utf8(&mut [0; 4]));
            format!("'{}'", &quoted[1..quoted.len() - 1])
        }
    }
}

/// `U+0063 'c'`.
fn code_point(c: char) -> String {
    let code = u32::from(c);
    if c.is_control() { format!("U+{code:04X}") } else { format!("U+{code:04X} '{c}'") }
}
