//! What remote write 1.0 tells of metric families, apart from their samples and later than the first of them.

use std::collections::HashMap;

/// Families remembered of one tenant; further ones are not, and their series stay without type and help.
pub const FAMILIES_MAX: usize = 50_000;

/// Bytes of a help text that are kept.
pub const HELP_BYTES_MAX: usize = 4096;

/// Type, unit and help of a metric family; `None` where not told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Family {
    pub metric_type: Option<&'static str>,
    pub unit: Option<String>,
    pub help: Option<String>,
}

/// The families of one tenant, by name.
#[derive(Clone, Debug, Default)]
pub struct Families(HashMap<String, Family>);

impl Families {
    /// Takes what a request told. Returns whether more is known than before; what was told otherwise before is no more.
    pub fn learn(&mut self, told: Vec<(String, Family)>) -> bool {
        let mut new = false;
        for (name, family) in told {
            let room = self.0.len() < FAMILIES_MAX;
            match self.0.get_mut(&name) {
                Some(known) if *known == family => {}
                Some(known) => {
                    new |= known.metric_type.is_none() && family.metric_type.is_some()
                        || known.unit.is_none() && family.unit.is_some()
                        || known.help.is_none() && family.help.is_some();
                    *known = family;
                }
                None if room => {
                    self.0.insert(name, family);
                    new = true;
                }
                None => {}
            }
        }
        new
    }

    /// The family of a series named `metric`: its own, or the one whose `_bucket`, `_sum`, `_count` ... it is.
    pub fn of(&self, metric: &str) -> Option<&Family> {
        if self.0.is_empty() {
            return None;
        }
        if let Some(family) = self.0.get(metric) {
            return Some(family);
        }
        let (base, suffix) = metric.rsplit_once('_')?;
        let family = self.0.get(base)?;
        let fits: &[&str] = match suffix {
            "bucket" => &["histogram", "gaugehistogram"],
            "sum" | "count" => &["histogram", "summary"],
            "gsum" | "gcount" => &["gaugehistogram"],
            "total" => &["counter"],
            "created" => &["counter", "histogram", "summary"],
            "info" => &["info"],
            _ => &[],
        };
        family.metric_type.is_some_and(|t| fits.contains(&t)).then_some(family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_family_are_told_by_suffix_and_type() {
        let mut known = Families::default();
        let family = |t| Family { metric_type: Some(t), ..Family::default() };
        let told = vec![("a".to_owned(), family("histogram")), ("b_total".to_owned(), family("counter"))];
        assert!(known.learn(told.clone()));
        assert!(!known.learn(told));
        for (metric, want) in [
            ("a_bucket", Some("histogram")),
            ("a_count", Some("histogram")),
            ("a", Some("histogram")),
            ("a_total", None),
            ("b_total", Some("counter")),
            ("b_total_sum", None),
            ("b", None),
        ] {
            assert_eq!(known.of(metric).and_then(|f| f.metric_type), want, "{metric}");
        }
    }
}
