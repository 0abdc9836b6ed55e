//! Functions of labels.

use std::{cmp::Ordering, sync::Arc};

use storage::model::{Labels, MatcherBudget};

use super::{Evaluator, Series, Steps, fail, join_same_labels};
use crate::{error::QueryError, promql::ast::Expr};

impl Evaluator {
    pub(super) fn label_replace(&self, args: &[Expr], steps: &Steps) -> Result<Vec<Series>, QueryError> {
        let [to, replacement, from, pattern] = [1, 2, 3, 4].map(|i| self.string(&args[i]));
        let (to, replacement, from, pattern) = (to?, replacement?, from?, pattern?);
        // That it fits in what the whole query may have was looked at before.
        let regex = MatcherBudget::default()
            .anchored(&pattern)
            .or_else(|_| fail(format!("invalid regular expression in label_replace(): {pattern}")))?;
        if to.is_empty() {
            return fail("invalid destination label name in label_replace(): ");
        }
        let mut series = self.vector(&args[0], steps)?;
        for s in &mut series {
            let Some(found) = regex.captures(s.labels.get(&from).unwrap_or("")) else { continue };
            let mut value = String::new();
            found.expand(&replacement, &mut value);
            let mut labels = Labels::clone(&s.labels);
            labels.set(&to, value);
            s.labels = Arc::new(labels);
        }
        join_same_labels(series)
    }

    pub(super) fn label_join(&self, args: &[Expr], steps: &Steps) -> Result<Vec<Series>, QueryError> {
        let to = self.string(&args[1])?;
        let separator = self.string(&args[2])?;
        let from = args[3..].iter().map(|a| self.string(a)).collect::<Result<Vec<_>, _>>()?;
        if to.is_empty() {
            return fail("invalid destination label name in label_join(): ");
        }
        let mut series = self.vector(&args[0], steps)?;
        for s in &mut series {
            let values: Vec<&str> = from.iter().map(|f| s.labels.get(f).unwrap_or("")).collect();
            let mut labels = Labels::clone(&s.labels);
            labels.set(&to, values.join(&separator));
            s.labels = Arc::new(labels);
        }
        join_same_labels(series)
    }

    pub(super) fn sort_by_label(
        &self,
        args: &[Expr],
        steps: &Steps,
        descending: bool,
    ) -> Result<Vec<Series>, QueryError> {
        let mut series = self.vector(&args[0], steps)?;
        let names = args[1..].iter().map(|a| self.string(a)).collect::<Result<Vec<_>, _>>()?;
        series.sort_by(|a, b| {
            let by_names = names
                .iter()
                .map(|n| natural(a.labels.get(n).unwrap_or(""), b.labels.get(n).unwrap_or("")))
                .find(|o| *o != Ordering::Equal);
            let order = by_names.unwrap_or_else(|| a.labels.cmp(&b.labels));
            if descending { order.reverse() } else { order }
        });
        Ok(series)
    }
}

/// Natural order: runs of digits compare as numbers.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
    while let (Some(x), Some(y)) = (a.first(), b.first()) {
        let (m, n) = (digits(a), digits(b));
        if m > 0 && n > 0 {
            let number =
                |s: &[u8], len: usize| -> Vec<u8> { s[..len].iter().copied().skip_while(|c| *c == b'0').collect() };
            let (p, q) = (number(a, m), number(b, n));
            let order = p.len().cmp(&q.len()).then_with(|| p.cmp(&q)).then_with(|| m.cmp(&n));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (&a[m..], &b[n..]);
        } else if x == y {
            (a, b) = (&a[1..], &b[1..]);
        } else {
            return x.cmp(y);
        }
    }
    a.len().cmp(&b.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_compare_as_numbers() {
        assert_eq!(natural("cpu2", "cpu10"), Ordering::Less);
        assert_eq!(natural("4.5.10", "4.5.9"), Ordering::Greater);
        assert_eq!(natural("a", "a1"), Ordering::Less);
    }
}
