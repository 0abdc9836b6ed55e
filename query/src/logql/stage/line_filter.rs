//! Line filters, on one line and on a column of lines.

use arrow::array::StringArray;
use memchr::memmem::Finder;
use regex::Regex;

use super::{ip::IpMatcher, pattern::Pattern};
use crate::logql::{
    ast::{LineFilter, LineOp, LineOperand},
    error::QueryError,
};

enum Test {
    Contains(Box<Finder<'static>>),
    Regex(Regex),
    Pattern(Pattern),
    Ip(IpMatcher),
}

impl Test {
    fn hits(&self, line: &str) -> bool {
        match self {
            Test::Contains(f) => f.find(line.as_bytes()).is_some(),
            Test::Regex(r) => r.is_match(line),
            Test::Pattern(p) => p.hits(line),
            Test::Ip(ip) => ip.matches_line(line),
        }
    }
}

/// A compiled line filter: keeps a line if any test hits, or, negated, if none does.
pub struct LineTest {
    negated: bool,
    tests: Vec<Test>,
}

impl LineTest {
    /// One of so `many` regular expressions.
    pub fn new(filter: &LineFilter, many: usize) -> Result<Self, QueryError> {
        let compile = |operand: &LineOperand| -> Result<Test, String> {
            Ok(match (operand, filter.op) {
                (LineOperand::Ip(p), _) => Test::Ip(IpMatcher::parse(p)?),
                (LineOperand::Text(t), LineOp::Contains | LineOp::NotContains) => {
                    Test::Contains(Box::new(Finder::new(t.as_bytes()).into_owned()))
                }
                (LineOperand::Text(t), LineOp::Matches | LineOp::NotMatches) => regex_test(t, many)?,
                (LineOperand::Text(t), LineOp::Pattern | LineOp::NotPattern) => {
                    Test::Pattern(Pattern::parse_filter(t)?)
                }
            })
        };
        let tests: Result<Vec<Test>, String> = filter.operands.iter().map(compile).collect();
        let tests = tests
            .map_err(|e| QueryError::parse(format!("stage '{}' : {e}", crate::logql::print::line_filter(filter))))?;
        Ok(LineTest { negated: filter.op.negated(), tests })
    }

    pub fn keep(&self, line: &str) -> bool {
        self.tests.iter().any(|t| t.hits(line)) != self.negated
    }

    /// Clears `mask[i]` where line `i` is dropped; lines whose mask is clear already are not looked at.
    pub fn mask(&self, lines: &StringArray, mask: &mut [bool]) {
        if let [Test::Contains(finder)] = self.tests.as_slice()
            && !finder.needle().is_empty()
        {
            return self.mask_contains(finder, lines, mask);
        }
        for (i, keep) in mask.iter_mut().enumerate() {
            if *keep {
                *keep = self.keep(lines.value(i));
            }
        }
    }

    /// One search over the bytes of all lines, which lie side by side: most lines are never touched one by one.
    fn mask_contains(&self, finder: &Finder<'static>, lines: &StringArray, mask: &mut [bool]) {
        let offsets = lines.value_offsets();
        let bytes = lines.value_data();
        let (Some(first), Some(last)) = (offsets.first(), offsets.last()) else { return };
        let end = *last as usize;
        let mut at = *first as usize;
        let mut row = 0;
        let needle = finder.needle().len();
        // `hit[row]` for negated filters too: collect, then apply.
        let mut hits = vec![false; mask.len()];
        while at < end {
            let Some(found) = finder.find(&bytes[at..end]) else { break };
            let start = at + found;
            // The row in which the hit starts: rows are few bytes long, so try near ones before a search.
            let mut steps = 0;
            while (offsets[row + 1] as usize) <= start {
                row += 1;
                steps += 1;
                if steps == 16 {
                    row += offsets[row + 1..].partition_point(|o| (*o as usize) <= start);
                }
            }
            let row_end = offsets[row + 1] as usize;
            if start + needle <= row_end {
                hits[row] = true;
                at = row_end;
            } else {
                at = start + 1;
            }
        }
        for (keep, hit) in mask.iter_mut().zip(hits) {
            *keep &= hit != self.negated;
        }
    }
}

/// A regular expression; one that is a plain literal becomes a search for it.
fn regex_test(text: &str, many: usize) -> Result<Test, String> {
    let compiled = crate::logql::regex::compile_one_of(text, many)?;
    if !text.is_empty() && !text.contains(|c: char| r"\.+*?()|[]{}^$".contains(c)) {
        return Ok(Test::Contains(Box::new(Finder::new(text.as_bytes()).into_owned())));
    }
    Ok(Test::Regex(compiled))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn test(op: LineOp, operands: &[&str]) -> LineTest {
        let operands = operands.iter().map(|o| LineOperand::Text((*o).to_owned())).collect();
        LineTest::new(&LineFilter { op, operands }, 1).unwrap()
    }

    #[test]
    fn empty_text_matches_everything() {
        assert!(test(LineOp::Contains, &[""]).keep("x") && !test(LineOp::NotContains, &[""]).keep("x"));
        assert!(
            test(LineOp::NotContains, &["a", "b"]).keep("c") && !test(LineOp::NotContains, &["a", "b"]).keep("b")
        );
    }

    proptest! {
        #[test]
        fn a_column_answers_as_its_lines_do(
            lines in prop::collection::vec("[ab\u{e9}]{0,6}", 0..60),
            from in 0usize..10,
            needle in "[ab\u{e9}]{0,3}",
            negated: bool,
        ) {
            use arrow::array::Array as _;
            let from = from.min(lines.len());
            let array = StringArray::from(lines.clone());
            let array = array.slice(from, lines.len() - from);
            let test = test(if negated { LineOp::NotContains } else { LineOp::Contains }, &[&needle]);
            let mut mask = vec![true; array.len()];
            test.mask(&array, &mut mask);
            let want: Vec<bool> = lines[from..].iter().map(|l| l.contains(&needle) != negated).collect();
            prop_assert_eq!(mask, want);
        }
    }
}
