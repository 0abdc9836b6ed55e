use super::*;

const DIALECT: Dialect = Dialect {
    puncts: &["==", "=~", "(", ")", "{", "}", "[", "]", "+", "-", "*", "^", ":", "="],
    ident_start: |c| c.is_ascii_alphabetic() || c == '_',
    ident_continue: |c| c.is_ascii_alphanumeric() || c == '_',
    colon_in_idents: true,
    single_quotes: true,
};

fn texts(text: &str) -> Vec<&str> {
    lex(text, &DIALECT).unwrap().iter().filter(|t| t.kind != Kind::End).map(|t| t.span.text(text)).collect()
}

#[test]
fn numbers_run_as_far_as_durations_and_exponents_do() {
    assert_eq!(texts("1e-3-0x1F+5m30s*.5"), ["1e-3", "-", "0x1F", "+", "5m30s", "*", ".5"]);
    assert_eq!(texts("1e3m"), ["1e3m"]);
}

#[test]
fn a_colon_belongs_to_names_outside_brackets_only() {
    assert_eq!(texts("job:x:rate5m[5m:1m]"), ["job:x:rate5m", "[", "5m", ":", "1m", "]"]);
}

#[test]
fn comments_and_white_space_vanish() {
    assert_eq!(texts("a # x\n b"), ["a", "b"]);
}

#[test]
fn strings_are_unquoted_as_go_does() {
    assert_eq!(unquote(r#""a\n\x41\u00e9\101\"""#).unwrap(), "a\nAéA\"".as_bytes());
    assert_eq!(unquote("`a\\n`").unwrap(), b"a\\n");
    assert_eq!(unquote(r#""\xff""#).unwrap(), [0xff]);
    for bad in [r#""\q""#, r#""\x4""#, r#""\ud800""#, r#""\777""#] {
        assert!(unquote(bad).is_err(), "{bad}");
    }
}

#[test]
fn errors_say_where() {
    let e = lex("a +\n  ?", &DIALECT).unwrap_err();
    assert_eq!(e.to_string(), "2:3: parse error: unexpected character: '?'");
    assert!(lex("\"a", &DIALECT).is_err() && lex("\"a\nb\"", &DIALECT).is_err());
    assert!(lex(&"x".repeat(QUERY_BYTES_MAX + 1), &DIALECT).is_err());
}

/// Sums as text, `^` right-associative.
struct Toy<'a>(Cursor<'a>);

impl Climb for Toy<'_> {
    type Expr = String;
    type Op = String;

    fn operand(&mut self) -> Result<String, SyntaxError> {
        if self.0.eat("(") {
            let inner = climb(self, 0)?;
            self.0.expect(")", "parentheses")?;
            return Ok(inner);
        }
        let token = self.0.next();
        Ok(self.0.text_of(token).to_owned())
    }

    fn binding(&self) -> Option<Binding> {
        match self.0.peek().kind {
            Kind::Punct("+" | "-") => Some(Binding::left(1)),
            Kind::Punct("*") => Some(Binding::left(2)),
            Kind::Punct("^") => Some(Binding::right(3)),
            _ => None,
        }
    }

    fn operator(&mut self) -> Result<String, SyntaxError> {
        let token = self.0.next();
        Ok(self.0.text_of(token).to_owned())
    }

    fn join(&mut self, op: String, left: String, right: String) -> Result<String, SyntaxError> {
        Ok(format!("({left}{op}{right})"))
    }

    fn enter(&mut self) -> Result<(), SyntaxError> {
        self.0.enter()
    }

    fn leave(&mut self, levels: usize) {
        (0..levels).for_each(|_| self.0.leave());
    }
}

#[test]
fn operators_bind_by_level_and_side() {
    let parse = |text: &str| climb(&mut Toy(Cursor::new(text, &DIALECT).unwrap()), 0);
    assert_eq!(parse("a+b*c-d").unwrap(), "((a+(b*c))-d)");
    assert_eq!(parse("a^b^c*d").unwrap(), "((a^(b^c))*d)");
    assert!(parse(&"(".repeat(5000)).unwrap_err().message.contains("nested deeper"));
    assert!(parse(&"a+".repeat(5000)).unwrap_err().message.contains("nested deeper"));
}
