//! Template text to tree. Functions and variables that do not exist are errors here.

use std::collections::BTreeMap;

use super::{
    DEPTH_MAX, Value, functions,
    lex::{self, Piece, Spaced, Token},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    pub root: Vec<Node>,
    pub defined: BTreeMap<String, Vec<Node>>,
    pub calls_query: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Text(String),
    Action(Pipe),
    If { pipe: Pipe, then: Vec<Node>, otherwise: Vec<Node> },
    With { pipe: Pipe, then: Vec<Node>, otherwise: Vec<Node> },
    Range { pipe: Pipe, body: Vec<Node>, otherwise: Vec<Node> },
    Template { name: String, argument: Option<Pipe> },
    Break,
    Continue,
}

/// `$a, $b := command | command`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pipe {
    pub variables: Vec<String>,
    /// `=` instead of `:=`.
    pub assigns: bool,
    pub commands: Vec<Vec<Operand>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Dot,
    Nil,
    Literal(Value),
    Function(String),
    Variable(String),
    Pipe(Box<Pipe>),
    /// Fields of an operand, from left to right; of [`Operand::Dot`] for `.a.b`.
    Fields(Box<Operand>, Vec<String>),
}

struct Parser<'a> {
    pieces: std::vec::IntoIter<Piece<'a>>,
    tree: Tree,
    variables: Vec<String>,
    line: usize,
    loops: usize,
    depth: usize,
}

/// What ends a list of nodes.
#[derive(Debug, PartialEq)]
enum Ended {
    Text,
    End,
    /// `{{else}}` with what follows it: `if ...`, `with ...` or nothing.
    Else(Vec<Spaced>),
}

pub fn parse(text: &str, variables: &[&str]) -> Result<Tree, String> {
    let mut parser = Parser {
        pieces: lex::pieces(text)?.into_iter(),
        tree: Tree::default(),
        variables: variables.iter().map(|v| (*v).to_owned()).chain(["$".to_owned()]).collect(),
        line: 1,
        loops: 0,
        depth: 0,
    };
    let (root, ended) = parser.list().map_err(|e| parser.placed(e))?;
    match ended {
        Ended::Text => {}
        Ended::End => return Err(parser.placed("unexpected {{end}}".into())),
        Ended::Else(_) => return Err(parser.placed("unexpected {{else}}".into())),
    }
    parser.tree.root = root;
    Ok(parser.tree)
}

impl Parser<'_> {
    fn placed(&self, message: String) -> String {
        format!("{}: {message}", self.line)
    }

    fn enter(&mut self) -> Result<(), String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(format!("nested deeper than {DEPTH_MAX}")) } else { Ok(()) }
    }

    /// Nodes up to the end of the block or text. Variables declared in it end with it.
    fn list(&mut self) -> Result<(Vec<Node>, Ended), String> {
        self.enter()?;
        let scope = self.variables.len();
        let mut out = Vec::new();
        let ended = loop {
            let Some(piece) = self.pieces.next() else { break Ended::Text };
            let (action, line) = match piece {
                Piece::Text(text) => {
                    out.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(action, line) => (action, line),
            };
            self.line = line;
            let mut tokens = lex::tokens(action)?;
            let word = match tokens.first() {
                Some((Token::Word(w), _)) => w.clone(),
                Some(_) => String::new(),
                None => return Err("missing value for command".into()),
            };
            match word.as_str() {
                "end" => break Ended::End,
                "else" => break Ended::Else(tokens.split_off(1)),
                "if" | "with" | "range" => out.push(self.block(&word, tokens.split_off(1))?),
                "define" | "block" => {
                    let node = self.define(&word, tokens.split_off(1))?;
                    out.extend(node);
                }
                "template" => out.push(self.template(tokens.split_off(1))?),
                "break" | "continue" => {
                    if self.loops == 0 {
                        return Err(format!("{{{{{word}}}}} outside {{{{range}}}}"));
                    }
                    out.push(if word == "break" { Node::Break } else { Node::Continue });
                }
                _ => out.push(Node::Action(self.pipe(tokens, "command")?)),
            }
        };
        self.variables.truncate(scope);
        self.depth -= 1;
        Ok((out, ended))
    }

    fn block(&mut self, word: &str, tokens: Vec<Spaced>) -> Result<Node, String> {
        let begun = self.line;
        // The pipe's variables live in both branches.
        let scope = self.variables.len();
        let pipe = self.pipe(tokens, word)?;
        if word == "range" {
            self.loops += 1;
        }
        let (then, ended) = self.list()?;
        if word == "range" {
            self.loops -= 1;
        }
        let otherwise = match ended {
            Ended::End => Vec::new(),
            Ended::Text => {
                self.line = begun;
                return Err(format!("unexpected EOF: {{{{{word}}}}} has no {{{{end}}}}"));
            }
            Ended::Else(rest) => match rest.first() {
                None => match self.list()? {
                    (nodes, Ended::End) => nodes,
                    (_, Ended::Else(_)) => return Err("expected end; found {{else}}".into()),
                    (_, Ended::Text) => return Err(format!("unexpected EOF: {{{{{word}}}}} has no {{{{end}}}}")),
                },
                Some((Token::Word(w), _)) if w == word && word != "range" => {
                    self.enter()?;
                    let nested = self.block(word, rest[1..].to_vec())?;
                    self.depth -= 1;
                    vec![nested]
                }
                Some(_) => return Err(format!("unexpected text after {{{{else}}}} of {{{{{word}}}}}")),
            },
        };
        self.variables.truncate(scope);
        Ok(match word {
            "if" => Node::If { pipe, then, otherwise },
            "with" => Node::With { pipe, then, otherwise },
            _ => Node::Range { pipe, body: then, otherwise },
        })
    }

    fn name(tokens: &[Spaced], word: &str) -> Result<String, String> {
        match tokens.first() {
            Some((Token::Literal(Value::Text(name)), _)) => Ok(name.to_string()),
            _ => Err(format!("expected a quoted name in {word}")),
        }
    }

    fn template(&mut self, mut tokens: Vec<Spaced>) -> Result<Node, String> {
        let name = Self::name(&tokens, "template clause")?;
        let rest = tokens.split_off(1);
        let argument = if rest.is_empty() { None } else { Some(self.pipe(rest, "template clause")?) };
        Ok(Node::Template { name, argument })
    }

    fn define(&mut self, word: &str, mut tokens: Vec<Spaced>) -> Result<Option<Node>, String> {
        let name = Self::name(&tokens, word)?;
        let rest = tokens.split_off(1);
        let argument = match word {
            "block" => Some(self.pipe(rest, "block clause")?),
            _ if rest.is_empty() => None,
            _ => return Err("unexpected text in define clause".into()),
        };
        // A definition sees no variables from outside and no loop.
        let (outer, loops) =
            (std::mem::replace(&mut self.variables, vec!["$".into()]), std::mem::take(&mut self.loops));
        let (nodes, ended) = self.list()?;
        (self.variables, self.loops) = (outer, loops);
        if ended != Ended::End {
            return Err(format!("unexpected end of {{{{{word}}}}}"));
        }
        self.tree.defined.insert(name.clone(), nodes);
        Ok((word == "block").then_some(Node::Template { name, argument }))
    }

    fn pipe(&mut self, tokens: Vec<Spaced>, context: &str) -> Result<Pipe, String> {
        let mut at = 0;
        let pipe = self.pipe_at(&tokens, &mut at, context)?;
        if at < tokens.len() {
            return Err(format!("unexpected {} in {context}", shown(&tokens[at].0)));
        }
        Ok(pipe)
    }

    fn pipe_at(&mut self, tokens: &[Spaced], at: &mut usize, context: &str) -> Result<Pipe, String> {
        self.enter()?;
        let mut pipe = Pipe::default();
        let mut declared = Vec::new();
        // `$x :=`, `$x =`, and in range `$i, $x :=`.
        let names: Vec<&Token> = tokens[*at..].iter().map(|t| &t.0).take(4).collect();
        match names.as_slice() {
            [Token::Variable(x), op @ (Token::Declare | Token::Assign), ..] => {
                declared.push(x.clone());
                pipe.assigns = **op == Token::Assign;
                *at += 2;
            }
            [Token::Variable(i), Token::Comma, Token::Variable(x), op @ (Token::Declare | Token::Assign)] => {
                if context != "range" {
                    return Err(format!("too many declarations in {context}"));
                }
                declared.extend([i.clone(), x.clone()]);
                pipe.assigns = **op == Token::Assign;
                *at += 4;
            }
            _ => {}
        }
        if pipe.assigns {
            declared.iter().try_for_each(|v| self.known(v))?;
        }
        loop {
            let command = self.command(tokens, at, context)?;
            if !pipe.commands.is_empty() && !matches!(command[0], Operand::Function(_) | Operand::Fields(..)) {
                return Err(format!("non executable command in pipeline stage {}", pipe.commands.len() + 1));
            }
            pipe.commands.push(command);
            match tokens.get(*at) {
                Some((Token::Pipe, _)) => *at += 1,
                _ => break,
            }
        }
        if !pipe.assigns {
            self.variables.extend(declared.iter().cloned());
        }
        pipe.variables = declared;
        self.depth -= 1;
        Ok(pipe)
    }

    fn known(&self, variable: &str) -> Result<(), String> {
        if self.variables.iter().any(|v| v == variable) {
            return Ok(());
        }
        Err(format!("undefined variable {variable:?}"))
    }

    fn command(&mut self, tokens: &[Spaced], at: &mut usize, context: &str) -> Result<Vec<Operand>, String> {
        let mut out: Vec<Operand> = Vec::new();
        while let Some((token, spaced)) = tokens.get(*at) {
            let operand = match token {
                Token::Pipe | Token::Close => break,
                Token::Dot => Operand::Dot,
                Token::Field(name) => {
                    *at += 1;
                    // Right after an operand it is a field of that.
                    match out.last_mut() {
                        Some(Operand::Fields(_, fields)) if !spaced => {
                            fields.push(name.clone());
                            continue;
                        }
                        Some(last @ (Operand::Variable(_) | Operand::Pipe(_))) if !spaced => {
                            let inner = std::mem::replace(last, Operand::Nil);
                            *last = Operand::Fields(Box::new(inner), vec![name.clone()]);
                            continue;
                        }
                        _ => {}
                    }
                    out.push(Operand::Fields(Box::new(Operand::Dot), vec![name.clone()]));
                    continue;
                }
                Token::Variable(name) => {
                    self.known(name)?;
                    Operand::Variable(name.clone())
                }
                Token::Literal(value) => Operand::Literal(value.clone()),
                Token::Word(word) => match word.as_str() {
                    "true" => Operand::Literal(Value::Bool(true)),
                    "false" => Operand::Literal(Value::Bool(false)),
                    "nil" => Operand::Nil,
                    name if functions::exists(name) => {
                        self.tree.calls_query |= name == "query";
                        Operand::Function(name.to_owned())
                    }
                    name => return Err(format!("function {name:?} not defined")),
                },
                Token::Open => {
                    *at += 1;
                    let inner = self.pipe_at(tokens, at, "parenthesized pipeline")?;
                    if tokens.get(*at).map(|t| &t.0) != Some(&Token::Close) {
                        return Err("unclosed left paren".into());
                    }
                    Operand::Pipe(Box::new(inner))
                }
                Token::Declare | Token::Assign | Token::Comma => {
                    return Err(format!("unexpected {} in {context}", shown(token)));
                }
            };
            out.push(operand);
            *at += 1;
        }
        if out.is_empty() {
            return Err(format!("missing value for {context}"));
        }
        Ok(out)
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Word(w) | Token::Variable(w) => format!("{w:?}"),
        Token::Field(f) => format!("\".{f}\""),
        Token::Dot => "\".\"".into(),
        Token::Literal(v) => format!("{:?}", v.to_text()),
        Token::Pipe => "\"|\"".into(),
        Token::Open => "\"(\"".into(),
        Token::Close => "\")\"".into(),
        Token::Declare => "\":=\"".into(),
        Token::Assign => "\"=\"".into(),
        Token::Comma => "\",\"".into(),
    }
}
