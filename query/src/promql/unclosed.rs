//! Brackets without their other half: told as Prometheus's lexer tells them, which comes before its parser.
//!
//! Not here: whether a query is wrong. What the parser takes is never looked at.

use crate::syntax::{Kind, Span, SyntaxError, Token};

/// The parser's error, or one in its place if what it met is a bracket, or an end, that fits no bracket before it.
pub fn told(text: &str, tokens: &[Token], error: SyntaxError) -> SyntaxError {
    let mut parens = 0_u32;
    let (mut brace, mut bracket) = (false, false);
    let mut last = Kind::End;
    for token in tokens.iter().take_while(|t| t.kind != Kind::End && t.span.start < error.span.start) {
        match token.kind {
            Kind::Punct("{") => brace = true,
            Kind::Punct("}") => brace = false,
            Kind::Punct("[") => bracket = true,
            Kind::Punct("]") => bracket = false,
            Kind::Punct("(") => parens += 1,
            Kind::Punct(")") => parens = parens.saturating_sub(1),
            _ => {}
        }
        last = token.kind;
    }
    let Some(met) =
        tokens.iter().find(|t| t.span.start == error.span.start && error.message.starts_with("unexpected "))
    else {
        return error;
    };
    let message = match met.kind {
        Kind::End if brace => "unexpected end of input inside braces",
        Kind::End if bracket && last != Kind::Number => "unexpected end of input in duration expression",
        Kind::End if parens > 0 => "unclosed left parenthesis",
        Kind::End if bracket => "unclosed left bracket",
        Kind::Punct(")") if parens == 0 && !brace => {
            // It has been taken by then.
            return SyntaxError::new(text, Span::new(met.span.end, met.span.end), "unexpected right parenthesis ')'");
        }
        Kind::Punct("]") if !bracket && !brace => "unexpected right bracket ']'",
        Kind::Punct("}") if !brace => "unexpected character: '}'",
        _ => return error,
    };
    SyntaxError::new(text, met.span, message)
}

#[cfg(test)]
mod tests {
    use super::super::parser::parse;

    #[test]
    fn brackets_without_their_other_half_are_told_as_prometheus_tells_them() {
        for (query, text) in [
            ("up{", "1:4: parse error: unexpected end of input inside braces"),
            ("{", "1:2: parse error: unexpected end of input inside braces"),
            ("sum(up{a=\"b\",", "1:14: parse error: unexpected end of input inside braces"),
            ("sum by (a", "1:10: parse error: unclosed left parenthesis"),
            ("sum(up", "1:7: parse error: unclosed left parenthesis"),
            ("(", "1:2: parse error: unclosed left parenthesis"),
            ("rate(up[5m", "1:11: parse error: unclosed left parenthesis"),
            ("sum(rate(up[5m])", "1:17: parse error: unclosed left parenthesis"),
            ("up[5m", "1:6: parse error: unclosed left bracket"),
            ("up[", "1:4: parse error: unexpected end of input in duration expression"),
            ("up)", "1:4: parse error: unexpected right parenthesis ')'"),
            ("sum(up))", "1:9: parse error: unexpected right parenthesis ')'"),
            ("up]", "1:3: parse error: unexpected right bracket ']'"),
            ("up}", "1:3: parse error: unexpected character: '}'"),
            // Not for want of a bracket.
            ("1 +", "1:4: parse error: unexpected end of input"),
            ("sum by", "1:7: parse error: unexpected end of input in grouping opts, expected \"(\""),
            ("(up{a=1})", "1:7: parse error: unexpected number \"1\" in label matching, expected string"),
        ] {
            assert_eq!(parse(query).unwrap_err().to_string(), text, "{query}");
        }
    }
}
