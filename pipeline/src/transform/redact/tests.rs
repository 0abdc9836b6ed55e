use storage::model::{Labels, LogBatchBuilder, LogRow, MetricBatchBuilder, batch::SeriesMeta};

use super::{patterns::Named, *};
use crate::{
    Batch,
    metrics::{ComponentKind, Registry},
    sink::stdout::write_batch,
};

#[track_caller]
fn check(named: Named, cases: &[(&str, &str)]) {
    for (text, want) in cases {
        let got = named.replace(text).map_or_else(|| (*text).to_owned(), |(t, _)| t);
        assert_eq!(got, *want, "{named:?} in {text:?}");
    }
}

#[test]
fn addresses_of_people_and_machines_are_found_and_what_only_looks_like_them_is_not() {
    check(
        Named::Email,
        &[
            ("mail a.b+c@mail.example.org, now", "mail [email], now"),
            ("<x@y.io><z@w.de>", "<[email]><[email]>"),
            ("user@localhost and @home", "user@localhost and @home"),
            ("ü@example.org", "ü@example.org"),
        ],
    );
    check(
        Named::Ipv4,
        &[
            ("from 10.0.0.1:80 to (192.168.1.255).", "from [ip]:80 to ([ip])."),
            ("v1.2.3.4 1.2.3.4.5 256.1.1.1 01.2.3.4 1.2.3", "v1.2.3.4 1.2.3.4.5 256.1.1.1 01.2.3.4 1.2.3"),
            ("last 1.2.3.4.", "last [ip]."),
        ],
    );
    check(
        Named::Ipv6,
        &[
            ("[2001:db8::1]:443", "[[ip]]:443"),
            ("at fe80::1: up, ::1 too", "at [ip]: up, [ip] too"),
            ("::ffff:10.0.0.1 mapped", "[ip] mapped"),
            ("12:34:56 std::net a::b:: x::", "12:34:56 std::net a::b:: x::"),
        ],
    );
    check(Named::Ip, &[("10.0.0.1 and 2001:db8::7", "[ip] and [ip]")]);
}

#[test]
fn card_numbers_need_an_issuer_and_a_right_check_digit() {
    check(
        Named::Card,
        &[
            ("pay 4111111111111111 now", "pay [card] now"),
            ("4111 1111 1111 1111, 5500-0000-0000-0004", "[card], [card]"),
            ("amex 3782 822463 10005", "amex [card]"),
            ("12 4111 1111 1111 1111 99", "12 [card] 99"),
            // A wrong check digit, a time in nanoseconds, an id, a part of a longer number.
            ("4111111111111112", "4111111111111112"),
            ("1700000000000000000", "1700000000000000000"),
            ("id4111111111111111", "id4111111111111111"),
            ("00041111111111111110", "00041111111111111110"),
        ],
    );
}

#[test]
fn of_a_bearer_token_the_word_stays() {
    check(
        Named::Bearer,
        &[
            ("Authorization: Bearer eyJhbGciOi.J9.s-_~+/==", "Authorization: Bearer [bearer]"),
            ("authorization=bearer\tabcdefgh1, x", "authorization=bearer\t[bearer], x"),
            ("the bearer of news", "the bearer of news"),
        ],
    );
}

fn build(json: &str) -> Redact {
    Redact::new(&serde_json::from_str(json).unwrap(), "transforms.t").unwrap_or_else(|e| panic!("{e:?}"))
}

fn apply(t: &Redact, data: Data) -> (Vec<serde_json::Value>, u64) {
    let registry = Registry::default();
    let data = t.apply(data, &registry.add("t", ComponentKind::Transform)).unwrap();
    let text = write_batch(&Batch::new(Default::default(), data)).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (lines, registry.snapshot()[0].changed(Change::Redacted))
}

#[test]
fn bodies_and_all_of_the_attributes_are_looked_at_and_each_find_is_counted() {
    let t = build(
        r#"{"inputs":["s"],"patterns":["email","card"],"expressions":[{"regex":"pin=(\\d)\\d+","replacement":"pin=$1***"}]}"#,
    );
    let mut b = LogBatchBuilder::new();
    let attrs = Some(r#"{"a@b.cd":"a@b.cd","n":4111111111111111,"o":{"p":["x@y.zz",true,7]}}"#);
    let row = LogRow { stream_labels: r#"{"mail":"a@b.cd"}"#, attrs, ..LogRow::default() };
    b.push(&LogRow { body: "nothing here", ..row });
    b.push(&LogRow { body: "pin=1234 for a@b.cd", ..row });
    b.push(&LogRow { body: r#"{"to":["a@b.cd"]}"#, body_type: Some("json"), attrs: None, ..row });
    let (rows, count) = apply(&t, Data::Logs(b.finish()));
    assert_eq!(rows[0]["body"], "nothing here");
    assert_eq!(rows[1]["body"], "pin=1*** for [email]");
    assert_eq!(rows[2]["body"], serde_json::json!({"to":["[email]"]}));
    assert_eq!(rows[0]["attrs"], serde_json::json!({"a@b.cd":"[email]","n":"[card]","o":{"p":["[email]",true,7]}}));
    assert_eq!(rows[0]["stream_labels"]["mail"], "a@b.cd", "stream labels only when named");
    assert_eq!(count, 3 + 3 + 2 + 1);
}

#[test]
fn only_the_fields_that_are_named_are_touched() {
    let t = build(r#"{"inputs":["s"],"patterns":["ip"],"fields":[".attrs.peer",".stream"]}"#);
    let mut b = LogBatchBuilder::new();
    let attrs = Some(r#"{"other":"10.0.0.1","peer":"10.0.0.1"}"#);
    b.push(&LogRow { stream_labels: r#"{"host":"10.0.0.1"}"#, attrs, body: "10.0.0.1", ..LogRow::default() });
    let (rows, count) = apply(&t, Data::Logs(b.finish()));
    assert_eq!(rows[0]["attrs"], serde_json::json!({"other":"10.0.0.1","peer":"[ip]"}));
    assert_eq!(
        (rows[0]["stream_labels"]["host"].as_str(), rows[0]["body"].as_str()),
        (Some("[ip]"), Some("10.0.0.1"))
    );
    assert_eq!(count, 2);
    let t = build(r#"{"inputs":["s"],"patterns":["ip"],"fields":[".labels"]}"#);
    assert_eq!(t.signals(), Signals::METRICS);
    let mut m = MetricBatchBuilder::new();
    for host in ["10.0.0.1", "10.0.0.2"] {
        let id = m.series(&Labels::from_pairs([("__name__", "up"), ("host", host)]), SeriesMeta::default());
        m.sample(id, 1, None, 1.0);
    }
    let (rows, _) = apply(&t, Data::Metrics(m.finish()));
    assert!(rows.len() == 2 && rows.iter().all(|r| r["labels"]["host"] == "[ip]"), "{rows:?}");
}

#[test]
fn mistakes_name_their_place() {
    let config = r#"{"inputs":["s"],"expressions":[{"regex":"("}],"fields":[".ts",".bdoy"]}"#;
    let Err(e) = Redact::new(&serde_json::from_str(config).unwrap(), "transforms.t") else {
        panic!("expected errors")
    };
    let text: Vec<String> = e.iter().map(ToString::to_string).collect();
    assert!(text[0].starts_with("transforms.t.expressions[0].regex: invalid regular expression"), "{text:?}");
    assert!(text[1].starts_with("transforms.t.fields[0]: `.ts` holds no text"), "{text:?}");
    assert!(text[2].contains("did you mean `.body`?"), "{text:?}");
}
