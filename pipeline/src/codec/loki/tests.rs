use arrow::array::AsArray;
use proptest::prelude::*;

use super::*;
use crate::codec::otlp::wire::{put_bytes, put_int};

const NOW: i64 = 1_793_493_000_000_000_000;

fn bodies(p: &Push) -> Vec<String> {
    p.decoded
        .batches
        .iter()
        .flat_map(|b| {
            let Data::Logs(b) = b else { panic!("logs") };
            b.column_by_name("body")
                .unwrap()
                .as_string::<i32>()
                .iter()
                .flatten()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

fn read(json: &str) -> Push {
    decode_json(json.as_bytes(), &Limits::default(), NOW).unwrap_or_else(|e| panic!("{e}: {json}"))
}

#[test]
fn odd_but_accepted_forms_are_stored_as_loki_does() {
    let p = read(
        r#"{"streams":[{"stream":{},"values":[["1793493000000000000","a"]]},{"stream":{"n":5},"values":[["1793493000000000000"]]},{"stream":{"a":"b"},"values":[]}]}"#,
    );
    assert_eq!((p.streams, p.decoded.accepted, bodies(&p)), (3, 2, vec!["a".to_owned(), String::new()]));
    let p =
        read(r#"{"streams":[{"labels":"{x=\"y\"}","entries":[{"ts":"2026-10-31T00:00:00Z","line":"old form"}]}]}"#);
    assert_eq!(bodies(&p), ["old form"]);
    assert_eq!(read("null").streams, 0);
    assert_eq!(read(r#"{"streams":null}"#).streams, 0);
}

#[test]
fn refused_entries_do_not_take_good_ones_with_them() {
    let long = "x".repeat(262_145);
    let p = read(&format!(
        r#"{{"streams":[{{"stream":{{"1a":"b"}},"values":[["1","x"]]}},{{"stream":{{"a":"b"}},"values":[["1793493000000000000","good"],["1793493000000000000","{long}"],["1893493000000000000","new"]]}}]}}"#
    ));
    assert_eq!((bodies(&p), p.decoded.rejected.total()), (vec!["good".to_owned()], 3));
    assert!(p.last_error.unwrap().contains("has timestamp too new"));
    let texts: Vec<&str> = p.decoded.rejected.details.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(texts[0], "couldn't parse labels: 1:2: parse error: unexpected character inside braces: '1'");
    assert_eq!(
        texts[1],
        r#"max entry size '262144' bytes exceeded for stream '{a="b", service_name="unknown_service"}' while adding an entry with length '262145' bytes"#
    );
}

#[test]
fn an_equal_entry_is_stored_once_and_a_different_line_twice() {
    let p = read(
        r#"{"streams":[{"stream":{"a":"b"},"values":[["1","x"],["1","y"],["1","x"]]},{"stream":{"a":"c"},"values":[["1","x"]]}]}"#,
    );
    assert_eq!((bodies(&p), p.decoded.accepted), (["x", "y", "x"].map(str::to_owned).to_vec(), 4));
}

#[test]
fn a_refusal_quotes_a_part_of_what_was_sent() {
    let p = read(&format!(r#"{{"streams":[{{"stream":{{"a":"{}"}},"values":[["1","x"]]}}]}}"#, "v".repeat(1 << 20)));
    assert!(p.last_error.unwrap().len() < 10_000);
    assert!(p.decoded.rejected.details[0].message.len() < 10_000);
}

#[test]
fn label_texts_are_read_with_gos_escapes() {
    let l = parse_labels(r#"{ app = "a\"\n\u00fc\x41\101" , b=`raw\n`, empty="" }"#).unwrap();
    assert_eq!(l.to_json(), r#"{"app":"a\"\nüAA","b":"raw\\n"}"#);
    assert!(parse_labels("{}").unwrap().is_empty());
    for bad in
        ["", "{", "{a}", "{a=b}", r#"{a!="b"}"#, r#"{a="b"} x"#, r#"{1a="b"}"#, r#"{a="b" c="d"}"#, r#"{a="\q"}"#]
    {
        assert!(parse_labels(bad).is_err(), "{bad}");
    }
}

fn message() -> Vec<u8> {
    let mut time = Vec::new();
    put_int(&mut time, 1, 1_793_493_000);
    put_int(&mut time, 2, 7);
    let mut pair = Vec::new();
    put_bytes(&mut pair, 1, b"k.x");
    put_bytes(&mut pair, 2, b"v");
    let mut entry = Vec::new();
    put_bytes(&mut entry, 1, &time);
    put_bytes(&mut entry, 2, b"line");
    put_bytes(&mut entry, 3, &pair);
    let mut stream = Vec::new();
    put_bytes(&mut stream, 1, br#"{app="x"}"#);
    put_bytes(&mut stream, 2, &entry);
    let mut out = Vec::new();
    put_bytes(&mut out, 1, &stream);
    out
}

#[test]
fn protobuf_is_read_with_metadata_names_made_valid() {
    let p = decode_protobuf(&message(), &Limits::default(), NOW).unwrap();
    let Data::Logs(b) = &p.decoded.batches[0] else { panic!("logs") };
    assert_eq!(bodies(&p), ["line"]);
    let attrs = b.column_by_name("attrs").unwrap().as_dictionary::<arrow::datatypes::Int32Type>();
    assert_eq!(attrs.values().as_string::<i32>().value(0), r#"{"k_x":"v"}"#);
}

proptest! {
    #[test]
    fn noise_and_damage_never_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        labels in "[{}=\",a-z`\\\\ux0-9ü ]{0,30}",
    ) {
        let limits = Limits::default();
        let _ = (decode_json(&noise, &limits, NOW), decode_protobuf(&noise, &limits, NOW), parse_labels(&labels));
        let mut body = message();
        let i = at.index(body.len());
        body[i] = byte;
        let _ = decode_protobuf(&body, &limits, NOW);
        let mut json = br#"{"streams":[{"stream":{"a":"b"},"values":[["1793493000000000000","x",{"k":"v"}]]}]}"#.to_vec();
        let i = at.index(json.len());
        json[i] = byte;
        let _ = decode_json(&json, &limits, NOW);
    }

    #[test]
    fn any_label_text_reads_back(v in "\\PC{0,20}") {
        let labels = Labels::from_pairs([("a", v.clone())]);
        let text = format!("{{a={}}}", serde_json::to_string(&v).unwrap());
        prop_assert_eq!(parse_labels(&text).unwrap(), labels);
    }
}
