//! Each action as Prometheus 3 does it; the expectations are those of its documentation and of its behaviour.

use storage::model::Labels;

use super::{RuleConfig, rule::Rule};

fn run(labels: &[(&str, &str)], rules: &str) -> Option<Labels> {
    let rules: Vec<RuleConfig> = serde_json::from_str(rules).unwrap();
    let mut errors = Vec::new();
    let rules: Vec<Rule> = rules.iter().filter_map(|r| Rule::new(r, "r", &mut errors)).collect();
    assert!(errors.is_empty(), "{errors:?}");
    let mut labels = Labels::from_pairs(labels.iter().copied());
    rules.iter().all(|r| r.apply(&mut labels)).then_some(labels)
}

#[track_caller]
fn gives(labels: &[(&str, &str)], rules: &str, want: &[(&str, &str)]) {
    assert_eq!(run(labels, rules), Some(Labels::from_pairs(want.iter().copied())), "{rules}");
}

#[track_caller]
fn errors(rule: &str) -> Vec<String> {
    let rule: RuleConfig = serde_json::from_str(rule).unwrap();
    let mut errors = Vec::new();
    assert!(Rule::new(&rule, "rules[0]", &mut errors).is_none());
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn replace_joins_sources_matches_whole_values_and_expands_both_templates() {
    let base = [("a", "foo"), ("b", "bar"), ("c", "baz")];
    let r = r#"[{"source_labels":["a"],"regex":"f(.*)","target_label":"d","replacement":"ch${1}-ch${1}"}]"#;
    gives(&base, r, &[("a", "foo"), ("b", "bar"), ("c", "baz"), ("d", "choo-choo")]);
    let r = r#"[{"source_labels":["a","b"],"regex":"f(.*);(.*)r","target_label":"a","replacement":"b${1}${2}m"},
                {"source_labels":["c","a"],"regex":"(b).*b(.*)ba(.*)","target_label":"d","replacement":"$1$2$2$3"}]"#;
    gives(
        &[("a", "foo"), ("b", "bar"), ("c", "baz")],
        r,
        &[("a", "boobam"), ("b", "bar"), ("c", "baz"), ("d", "boooom")],
    );
    // A part of the value is no match.
    gives(
        &[("a", "foo")],
        r#"[{"source_labels":["a"],"regex":"o","target_label":"a","replacement":"x"}]"#,
        &[("a", "foo")],
    );
    // An empty replacement deletes; so does a group that took no part.
    gives(
        &[("a", "foo"), ("f", "x")],
        r#"[{"source_labels":["a"],"regex":"foo","target_label":"f","replacement":""}]"#,
        &[("a", "foo")],
    );
    // A target from a capture; no name, no change.
    let r = r#"[{"source_labels":["a"],"regex":"some-([^-]+)-([^,]+)","target_label":"${1}","replacement":"${2}"}]"#;
    gives(&[("a", "some-name-value")], r, &[("a", "some-name-value"), ("name", "value")]);
    gives(
        &[("a", "foo")],
        r#"[{"source_labels":["a"],"regex":"(x?)foo","target_label":"$1","replacement":"v"}]"#,
        &[("a", "foo")],
    );
    // `$1x` names the group `1x`, which is not there.
    gives(&[("a", "foo")], r#"[{"source_labels":["a"],"target_label":"b","replacement":"$1x"}]"#, &[("a", "foo")]);
    // No sources and the default regex: the replacement as it is.
    gives(&[("a", "foo")], r#"[{"target_label":"b","replacement":"c"}]"#, &[("a", "foo"), ("b", "c")]);
    gives(&[("a", "x\ny")], r#"[{"source_labels":["a"],"target_label":"b"}]"#, &[("a", "x\ny"), ("b", "x\ny")]);
    gives(
        &[("a", "1"), ("b", "2")],
        r#"[{"source_labels":["a","b"],"separator":"","target_label":"c"}]"#,
        &[("a", "1"), ("b", "2"), ("c", "12")],
    );
    gives(
        &[("a", "٣")],
        r#"[{"source_labels":["a"],"regex":"\\d","target_label":"b","replacement":"d"}]"#,
        &[("a", "٣")],
    );
}

#[test]
fn keep_and_drop_look_at_the_whole_value_and_an_absent_label_is_empty() {
    let a = [("a", "foo")];
    assert!(run(&a, r#"[{"source_labels":["a"],"regex":".*o.*","action":"drop"}]"#).is_none());
    assert!(run(&a, r#"[{"source_labels":["a"],"regex":"f|o","action":"drop"}]"#).is_some());
    assert!(run(&a, r#"[{"source_labels":["a"],"regex":"foo","action":"keep"}]"#).is_some());
    assert!(run(&a, r#"[{"source_labels":["b"],"regex":"","action":"keep"}]"#).is_some());
    assert!(run(&a, r#"[{"source_labels":["b"],"regex":".+","action":"keep"}]"#).is_none());
    assert!(run(&[("code", "200")], r#"[{"source_labels":["code"],"regex":200,"action":"keep"}]"#).is_some());
    let rules = |action: &str| format!(r#"[{{"source_labels":["a"],"target_label":"b","action":"{action}"}}]"#);
    for (b, equal) in [("foo", true), ("bar", false)] {
        let labels = [("a", "foo"), ("b", b)];
        assert_eq!(run(&labels, &rules("keepequal")).is_some(), equal);
        assert_eq!(run(&labels, &rules("dropequal")).is_some(), !equal);
    }
}

#[test]
fn hashmod_takes_the_low_half_of_md5() {
    // What Prometheus gives for these two.
    let r = r#"[{"source_labels":["c"],"target_label":"d","action":"hashmod","modulus":1000}]"#;
    gives(&[("c", "baz")], r, &[("c", "baz"), ("d", "976")]);
    gives(&[("c", "foo\nbar")], r, &[("c", "foo\nbar"), ("d", "734")]);
}

#[test]
fn labels_are_mapped_dropped_and_kept_by_name() {
    let base = [("a", "1"), ("b1", "2"), ("b2", "3")];
    gives(
        &base,
        r#"[{"regex":"(b.*)","replacement":"bar_${1}","action":"labelmap"}]"#,
        &[("a", "1"), ("b1", "2"), ("b2", "3"), ("bar_b1", "2"), ("bar_b2", "3")],
    );
    gives(
        &[("__meta_my_bar", "aaa"), ("x", "b")],
        r#"[{"regex":"__meta_(my.*)","action":"labelmap"}]"#,
        &[("__meta_my_bar", "aaa"), ("my_bar", "aaa"), ("x", "b")],
    );
    gives(&base, r#"[{"regex":"(b.*)","action":"labelkeep"}]"#, &[("b1", "2"), ("b2", "3")]);
    gives(&base, r#"[{"regex":"(b.*)","action":"labeldrop"}]"#, &[("a", "1")]);
    gives(
        &[("foo", "bAr123Foo")],
        r#"[{"source_labels":["foo"],"action":"uppercase","target_label":"u"},{"source_labels":["foo"],"action":"lowercase","target_label":"l"}]"#,
        &[("foo", "bAr123Foo"), ("l", "bar123foo"), ("u", "BAR123FOO")],
    );
}

#[test]
fn what_a_rule_lacks_or_would_ignore_is_an_error_with_its_place() {
    assert_eq!(errors("{}"), ["rules[0].target_label: action `replace` needs a target_label"]);
    let e = errors(r#"{"action":"hashmod","target_label":"a"}"#);
    assert_eq!(e, ["rules[0].modulus: action `hashmod` needs a modulus above 0"]);
    let e = errors(r#"{"action":"labeldrop","regex":"a","source_labels":["b"],"target_label":"c"}"#);
    assert_eq!(e.len(), 2, "{e:?}");
    let e = errors(r#"{"action":"keep","regex":"("}"#);
    assert!(e[0].starts_with("rules[0].regex: error parsing regexp"), "{e:?}");
    assert!(
        serde_json::from_str::<RuleConfig>(r#"{"action":"labelswap"}"#).unwrap_err().to_string().contains("labelmap")
    );
}
