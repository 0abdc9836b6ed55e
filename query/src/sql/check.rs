//! What a query text must pass before it is planned: its size, its nesting, and that it is one SELECT.

use std::ops::ControlFlow;

use datafusion::sql::{
    parser::{DFParserBuilder, Statement as DfStatement},
    sqlparser::{
        ast::{Query, SetExpr, Statement, TableFactor, Visit, Visitor},
        dialect::GenericDialect,
        parser::ParserError,
        tokenizer::{Location, Token, TokenWithSpan, Tokenizer},
    },
};

use super::session::SqlError;
use crate::{
    limits::{SQL_DEPTH_MAX, SQL_TABLES_MAX, SQL_WORDS_MAX},
    syntax::{QUERY_BYTES_MAX, line_column},
};

/// The statement of a text that may be planned.
pub fn statement(text: &str) -> Result<DfStatement, SqlError> {
    if text.len() > QUERY_BYTES_MAX {
        return Err(SqlError::bad(format!(
            "the query has {} bytes, more than the limit of {QUERY_BYTES_MAX} bytes",
            text.len()
        )));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, text)
        .tokenize_with_location()
        .map_err(|e| SqlError::bad(e.message).at(position(e.location)))?;
    nesting(&tokens)?;
    let mut parsed = DFParserBuilder::new(tokens)
        // The parser counts several levels for one of ours.
        .with_recursion_limit(SQL_DEPTH_MAX * 4)
        .build()
        .and_then(|mut p| p.parse_statements())
        .map_err(|e| at_end(SqlError::of_datafusion(&e), text))?;
    let found = parsed.len();
    let statement = parsed.pop_front().ok_or_else(|| SqlError::bad("the query is empty; give one SELECT"))?;
    if found > 1 {
        return Err(SqlError::bad(format!("the query has {found} statements; give one SELECT")));
    }
    only_select(&statement)?;
    Ok(statement)
}

/// The parser gives no position to what is missing at the end.
fn at_end(e: SqlError, text: &str) -> SqlError {
    if e.position.is_some() || !e.error.to_string().ends_with("EOF") {
        return e;
    }
    let (line, column) = line_column(text, text.len());
    e.at(Some((line as u64, column as u64)))
}

/// `None` where the parser does not know.
pub fn position(at: Location) -> Option<(u64, u64)> {
    (at.line > 0).then_some((at.line, at.column))
}

/// Bounds the height of any tree made of the text: by its brackets, and by the words a chain of operators needs.
fn nesting(tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    let (mut depth, mut words) = (0usize, 0usize);
    for token in tokens {
        match &token.token {
            Token::Whitespace(_) | Token::Comma | Token::Number(..) | Token::SingleQuotedString(_) => continue,
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            _ => {}
        }
        words += 1;
        let over = if depth > SQL_DEPTH_MAX {
            format!("the query nests deeper than the limit of {SQL_DEPTH_MAX} brackets")
        } else if words > SQL_WORDS_MAX {
            format!("the query has more than the limit of {SQL_WORDS_MAX} words and operators")
        } else {
            continue;
        };
        return Err(SqlError::bad(over).at(position(token.span.start)));
    }
    Ok(())
}

fn only_select(statement: &DfStatement) -> Result<(), SqlError> {
    match statement {
        DfStatement::Statement(inner) => match inner.as_ref() {
            Statement::Query(query) => reads_only(query),
            Statement::Explain { statement, .. } => match statement.as_ref() {
                Statement::Query(query) => reads_only(query),
                other => Err(refused(&other.to_string())),
            },
            other => Err(refused(&other.to_string())),
        },
        DfStatement::Explain(explain) => only_select(&explain.statement),
        other => Err(refused(&other.to_string())),
    }
}

fn refused(statement: &str) -> SqlError {
    let verb = statement.split_whitespace().next().unwrap_or("statement").to_ascii_uppercase();
    SqlError::bad(format!("{verb} is refused: only one SELECT is served, which changes nothing"))
}

fn reads_only(query: &Query) -> Result<(), SqlError> {
    let mut look = Look { tables: 0 };
    match query.visit(&mut look) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(e) => Err(e),
    }
}

struct Look {
    tables: usize,
}

impl Visitor for Look {
    type Break = SqlError;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<SqlError> {
        if !query.locks.is_empty() {
            return ControlFlow::Break(SqlError::bad("FOR UPDATE and FOR SHARE are refused: nothing is locked here"));
        }
        match query.body.as_ref() {
            SetExpr::Insert(_) => ControlFlow::Break(refused("INSERT")),
            SetExpr::Update(_) => ControlFlow::Break(refused("UPDATE")),
            SetExpr::Delete(_) => ControlFlow::Break(refused("DELETE")),
            SetExpr::Merge(_) => ControlFlow::Break(refused("MERGE")),
            SetExpr::Select(s) if s.into.is_some() => ControlFlow::Break(SqlError::bad(
                "SELECT INTO is refused: only one SELECT is served, which changes nothing",
            )),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_table_factor(&mut self, _: &TableFactor) -> ControlFlow<SqlError> {
        self.tables += 1;
        if self.tables > SQL_TABLES_MAX {
            return ControlFlow::Break(SqlError::bad(format!(
                "the query names more than the limit of {SQL_TABLES_MAX} tables"
            )));
        }
        ControlFlow::Continue(())
    }
}

/// Text and position of what the parser says; it puts ` at Line: 3, Column: 7` behind its messages.
pub fn parser_error(e: &ParserError) -> SqlError {
    let text = match e {
        ParserError::TokenizerError(t) | ParserError::ParserError(t) => t.as_str(),
        ParserError::RecursionLimitExceeded => "the query nests too deep",
    };
    let Some((message, rest)) = text.rsplit_once(" at Line: ") else { return SqlError::bad(text) };
    let mut numbers = rest.split(", Column: ").map(|n| n.trim().parse::<u64>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(line)), Some(Ok(column))) => SqlError::bad(message).at(Some((line, column))),
        _ => SqlError::bad(text),
    }
}
