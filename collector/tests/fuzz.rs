//! Decoders of this crate on broken input; see [`fuzzing`].

#[path = "../../storage/tests/fuzzing/mod.rs"]
mod fuzzing;

use collector::{
    file_tail::formats::{Format, entry},
    prometheus::discovery::resolver::{MX, NS, SRV, records},
};
use fuzzing::{Target, run};

const MANIFEST: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn lines_of_container_runtimes() {
    let seeds = vec![
        b"2026-01-02T03:04:05.000000006Z stdout F a line".to_vec(),
        b"2026-01-02T03:04:05+01:00 stderr P:x part \xff of it".to_vec(),
    ];
    let words = ["stdout ", "stderr ", " F ", " P ", "9999-12-31T23:59:60Z", "-0001-01-01T00:00:00Z", "+99:99"];
    run(MANIFEST, Target { name: "cri", seeds, words: &words }, |input| {
        format!("{:?}", entry(Format::Cri, input).is_some())
    });
    let seeds = vec![
        br#"{"log":"a line \u00e9 \ud83d\ude00\n","stream":"stdout","time":"2026-01-02T03:04:05.000000006Z"}"#
            .to_vec(),
        br#"{"stream":"stderr","attrs":{"a":"b"},"time":"2026-01-02T03:04:05Z","log":"part"}"#.to_vec(),
    ];
    let words = ["\\ud800", "\\u0000", "\"log\":", "null", "\\", "\"", "{", "}", "[["];
    run(MANIFEST, Target { name: "docker_json", seeds, words: &words }, |input| {
        format!("{:?}", entry(Format::DockerJson, input).is_some())
    });
}

#[test]
fn answers_of_name_servers() {
    // One question `a.b`, two answers, one of them with a name that points back.
    let answer = |kind: u8, head: &[u8]| {
        let mut out = vec![0, 7, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0, 1, b'a', 1, b'b', 0, 0, kind, 0, 1];
        for name in [&b"\x01c\xc0\x0e"[..], b"\x01d\x03net\x00"] {
            out.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 9, 0, (head.len() + name.len()) as u8]);
            out.extend(head);
            out.extend(name);
        }
        out
    };
    let seeds = vec![answer(33, &[0, 1, 0, 2, 35, 140]), answer(15, &[0, 10]), answer(2, &[])];
    let words = ["\u{c}", "\0\0", "\u{1}a", "?abc", "\0!\0\u{1}", "\0\u{f}\0\u{1}"];
    run(MANIFEST, Target { name: "dns", seeds, words: &words }, |input| {
        let told = [SRV, MX, NS].map(|kind| match records(input, kind) {
            Ok(found) => found.len().min(9).to_string(),
            Err(e) => e.split(" with error").next().unwrap_or_default().to_owned(),
        });
        told.join(", ")
    });
}
