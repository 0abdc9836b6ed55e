//! Decoders of this crate on broken input; see [`fuzzing`].

#[path = "../../storage/tests/fuzzing/mod.rs"]
mod fuzzing;

use collector::file_tail::formats::{Format, entry};
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
