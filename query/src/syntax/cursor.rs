//! Walks the tokens of one query.

use super::{DEPTH_MAX, Dialect, Kind, Span, SyntaxError, Token, lex, unquote};

pub struct Cursor<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl<'a> Cursor<'a> {
    /// Lexes the whole text; errors on its length and on bad characters.
    pub fn new(text: &'a str, dialect: &Dialect) -> Result<Self, SyntaxError> {
        Ok(Cursor { text, tokens: lex(text, dialect)?, at: 0, depth: 0 })
    }

    /// Over tokens of the text, of which the last is [`Kind::End`].
    pub fn over(text: &'a str, tokens: Vec<Token>) -> Self {
        Cursor { text, tokens, at: 0, depth: 0 }
    }

    /// All tokens; the last one is [`Kind::End`].
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    pub fn text(&self) -> &'a str {
        self.text
    }

    pub fn peek(&self) -> Token {
        self.peek_at(0)
    }

    /// The token `n` after the next one.
    pub fn peek_at(&self, n: usize) -> Token {
        self.tokens[(self.at + n).min(self.tokens.len() - 1)]
    }

    /// Takes the next token; at the end it stays [`Kind::End`].
    #[allow(clippy::should_implement_trait)] // never ends, so it is no iterator
    pub fn next(&mut self) -> Token {
        let token = self.peek();
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    /// The token before the next one, or a zero-width one at the start.
    pub fn previous(&self) -> Token {
        match self.at.checked_sub(1) {
            Some(i) => self.tokens[i],
            None => Token { kind: Kind::End, span: Span::default() },
        }
    }

    /// A place to come back to.
    pub fn mark(&self) -> usize {
        self.at
    }

    pub fn reset(&mut self, mark: usize) {
        self.at = mark;
    }

    pub fn text_of(&self, token: Token) -> &'a str {
        token.span.text(self.text)
    }

    pub fn is_punct(&self, punct: &str) -> bool {
        matches!(self.peek().kind, Kind::Punct(p) if p == punct)
    }

    /// Takes the punctuation if it is next.
    pub fn eat(&mut self, punct: &str) -> bool {
        let hit = self.is_punct(punct);
        if hit {
            self.next();
        }
        hit
    }

    pub fn expect(&mut self, punct: &str, context: &str) -> Result<Span, SyntaxError> {
        if self.is_punct(punct) {
            return Ok(self.next().span);
        }
        Err(self.unexpected(context, &format!("{punct:?}")))
    }

    /// Whether the next token is this word, in any case of letters.
    pub fn is_keyword(&self, word: &str) -> bool {
        let token = self.peek();
        token.kind == Kind::Ident && self.text_of(token).eq_ignore_ascii_case(word)
    }

    pub fn eat_keyword(&mut self, word: &str) -> bool {
        let hit = self.is_keyword(word);
        if hit {
            self.next();
        }
        hit
    }

    /// Takes a quoted string; its bytes.
    pub fn string_bytes(&mut self, context: &str) -> Result<(Vec<u8>, Span), SyntaxError> {
        let token = self.peek();
        if token.kind != Kind::String {
            return Err(self.unexpected(context, "string"));
        }
        self.next();
        let bytes = unquote(self.text_of(token)).map_err(|m| self.error(token.span, m))?;
        Ok((bytes, token.span))
    }

    /// Takes a quoted string that must be UTF-8.
    pub fn string(&mut self, context: &str) -> Result<(String, Span), SyntaxError> {
        let (bytes, span) = self.string_bytes(context)?;
        let text = String::from_utf8(bytes).map_err(|_| self.error(span, "string is not valid UTF-8"))?;
        Ok((text, span))
    }

    /// Runs `inner` one level deeper; errors beyond [`DEPTH_MAX`].
    pub fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, SyntaxError>) -> Result<T, SyntaxError> {
        self.enter()?;
        let out = inner(self);
        self.leave();
        out
    }

    /// As [`Cursor::nested`], for parsers that own the cursor: pair with [`Cursor::leave`] on success.
    pub fn enter(&mut self) -> Result<(), SyntaxError> {
        if self.depth >= DEPTH_MAX {
            let message = format!("expression is nested deeper than {DEPTH_MAX} levels");
            return Err(self.error(self.peek().span, message));
        }
        self.depth += 1;
        Ok(())
    }

    pub fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    pub fn error(&self, span: Span, message: impl Into<String>) -> SyntaxError {
        SyntaxError::new(self.text, span, message)
    }

    /// `unexpected <what is there> in <context>, expected <what>`; empty context or expectation is left out.
    pub fn unexpected(&self, context: &str, expected: &str) -> SyntaxError {
        let token = self.peek();
        let text = self.text_of(token);
        let what = match token.kind {
            Kind::End => "end of input".to_owned(),
            Kind::Ident => format!("identifier {text:?}"),
            Kind::Number => format!("number {text:?}"),
            Kind::String => format!("string {text}"),
            Kind::Punct(p) => format!("{p:?}"),
        };
        self.unexpected_as(&what, context, expected)
    }

    /// As [`Cursor::unexpected`], where a language has its own names for what is there.
    pub fn unexpected_as(&self, what: &str, context: &str, expected: &str) -> SyntaxError {
        let mut message = format!("unexpected {what}");
        for (word, text) in [(" in ", context), (", expected ", expected)] {
            if !text.is_empty() {
                message.push_str(word);
                message.push_str(text);
            }
        }
        self.error(self.peek().span, message)
    }

    /// Errors unless all tokens are taken.
    pub fn finish(&self) -> Result<(), SyntaxError> {
        if self.peek().kind == Kind::End { Ok(()) } else { Err(self.unexpected("", "")) }
    }
}
