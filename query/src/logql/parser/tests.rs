use super::*;

fn fails(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn recorded_messages_are_given() {
    assert_eq!(fails(""), "parse error : syntax error: unexpected $end");
    assert_eq!(
        fails(r#"{app="x",}"#),
        "parse error at line 1, col 10: syntax error: unexpected }, expecting IDENTIFIER"
    );
    assert_eq!(fails("{app=}"), "parse error at line 1, col 6: syntax error: unexpected }, expecting STRING");
    assert_eq!(fails("{}"), format!("parse error : {EMPTY_SELECTOR}"));
    assert_eq!(fails(r#"topk(rate({app="x"}[1m]))"#), "parse error : parameter required for operation topk");
    assert_eq!(
        fails(r#"1 or rate({app="x"}[1m])"#),
        "parse error : unexpected literal for left leg of logical/set binary operation (or): 1.000000"
    );
    assert_eq!(
        fails(r#"{app="x"} + 1"#),
        "parse error : unexpected type for left leg of binary operation (+): *syntax.MatchersExpr"
    );
}

#[test]
fn constants_fold_and_precedence_is_that_of_promql() {
    for (text, want) in [("1 + 2 * 3 ^ 2 % 4 - -1", 4.0), ("2 ^ 3 ^ 0", 2.0), ("1 > 2", 0.0), ("-5", -5.0)] {
        assert_eq!(parse(text).unwrap(), Expr::Metric(Metric::Number(want)), "{text}");
    }
}

#[test]
fn nesting_and_length_are_limited() {
    let deep = format!("{}1{}", "(".repeat(5000), ")".repeat(5000));
    assert!(fails(&deep).contains("nested deeper"));
    assert!(fails(&format!("{{a=\"{}\"}}", "x".repeat(70_000))).contains("longer than"));
    let chained = vec!["1"; 5000].join("+");
    assert!(parse(&chained).is_ok());
}

#[test]
fn a_range_may_stand_before_or_behind_the_pipeline() {
    let a = parse(r#"count_over_time({app="x"}[10m] |= "u")"#).unwrap();
    let b = parse(r#"count_over_time(({app="x"} |= "u")[10m])"#).unwrap();
    let c = parse(r#"count_over_time({app="x"} |= "u" [10m])"#).unwrap();
    assert!(a == b && b == c);
}
