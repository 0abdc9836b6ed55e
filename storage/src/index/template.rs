//! Templates of log bodies: which part of a body is text of the program and which is an id.
//!
//! A *token* is a maximal run of `[A-Za-z0-9_]` and bytes >= 0x80. An *id* is a token with an ASCII digit, or of 4 and more
//! hex letters only. The *skeleton* is the body with every id replaced by one [`PLACEHOLDER`]. A body that holds the
//! placeholder byte itself is untemplated, and so is every row that a flush finds in a stream with too many templates
//! ([`crate::limits::TEMPLATES_PER_ROW_MAX`]): what a row's `template_id` says counts, not what its body would give.

use std::cell::RefCell;

use xxhash_rust::xxh3::xxh3_64;

use super::classes::{WINDOW, classes};

/// Stands for an id in a skeleton.
pub const PLACEHOLDER: u8 = 0;

/// What an untemplated body has for a skeleton. No templated body has it: two ids are never adjacent.
pub const UNTEMPLATED_SKELETON: &[u8] = &[PLACEHOLDER, PLACEHOLDER];

/// `xxh3_64(UNTEMPLATED_SKELETON)`.
pub const UNTEMPLATED: i64 = 3_685_390_413_631_870_213;

/// Scratch larger than this is given back after use, so that one huge body does not stay in memory for ever.
const SCRATCH_BYTES_MAX: usize = 1 << 20;

/// An id of hex letters only has at least this many.
const HEX_ID_LEN: u32 = 4;

/// Appends the skeleton of `body` to `out`. `false`, with nothing appended: the body holds the placeholder byte.
pub fn skeleton(body: &[u8], out: &mut Vec<u8>) -> bool {
    if memchr::memchr(PLACEHOLDER, body).is_some() {
        return false;
    }
    out.reserve(body.len());
    // Text up to here is in `out`; an id copies what precedes it and then one placeholder.
    let mut copied = 0;
    let mut at = 0;
    while at < body.len() {
        let rest = &body[at..];
        let seen = match rest.first_chunk::<WINDOW>() {
            Some(window) => classes(window),
            None => {
                let mut window = [PLACEHOLDER; WINDOW];
                window[..rest.len()].copy_from_slice(rest);
                classes(&window)
            }
        };
        // A token that may go on behind the window waits for the next one.
        let cut = if rest.len() > WINDOW { seen.token.leading_ones() as usize } else { 0 };
        if cut == WINDOW {
            let (id, len) = long_token(rest);
            if id {
                out.extend_from_slice(&body[copied..at]);
                out.push(PLACEHOLDER);
                copied = at + len;
            }
            at += len;
            continue;
        }
        let seen = seen.first(WINDOW - cut);
        let mut left = seen.ids::<HEX_ID_LEN>();
        while left != 0 {
            let (start, end) = seen.token_at(left.trailing_zeros() as usize);
            out.extend_from_slice(&body[copied..at + start]);
            out.push(PLACEHOLDER);
            copied = at + end;
            left &= u64::MAX.checked_shl(end as u32).unwrap_or(0);
        }
        at += WINDOW - cut;
    }
    if copied < body.len() {
        out.extend_from_slice(&body[copied..]);
    }
    true
}

/// A token longer than a window at the start of `text`: whether it is an id, and its length.
fn long_token(text: &[u8]) -> (bool, usize) {
    let part = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b >= 0x80;
    let len = text.iter().position(|b| !part(b)).unwrap_or(text.len());
    let token = &text[..len];
    let id = token.iter().any(u8::is_ascii_digit) || token.iter().all(u8::is_ascii_hexdigit);
    (id, len)
}

/// xxh3-64 of the skeleton, as the signed integer that column `template_id` holds; [`UNTEMPLATED`] for a body with the
/// placeholder byte in it.
pub fn template_id(body: &[u8]) -> i64 {
    thread_local! {
        static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.clear();
        let id = if skeleton(body, scratch) { xxh3_64(scratch) as i64 } else { UNTEMPLATED };
        if scratch.capacity() > SCRATCH_BYTES_MAX {
            *scratch = Vec::new();
        }
        id
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process::Command};

    use proptest::prelude::*;

    use super::*;

    fn skeleton_of(body: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        skeleton(body.as_bytes(), &mut out).then_some(out)
    }

    /// The rule again, token by token.
    fn slow_skeleton(body: &str) -> Vec<u8> {
        let token = |c: char| c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii();
        let mut out = Vec::new();
        let mut rest = body;
        while let Some(first) = rest.chars().next() {
            let end = rest.find(|c| token(c) != token(first)).unwrap_or(rest.len());
            let (part, tail) = rest.split_at(end);
            let digit = part.bytes().any(|b| b.is_ascii_digit());
            let hex = part.len() >= 4 && part.bytes().all(|b| b.is_ascii_hexdigit());
            if token(first) && (digit || hex) {
                out.push(0);
            } else {
                out.extend_from_slice(part.as_bytes());
            }
            rest = tail;
        }
        out
    }

    #[test]
    fn ids_become_placeholders() {
        for (body, expected) in [
            ("", ""),
            ("plain words", "plain words"),
            ("blk_38 done", "\0 done"),
            ("added bad feed beefs", "\0 bad \0 beefs"),
            ("550e8400-e29b-41d4-a716-446655440000", "\0-\0-\0-\0-\0"),
            ("10.251.73.220:50010", "\0.\0.\0.\0:\0"),
            ("é1 é abcdé", "\0 é abcdé"),
            ("DEAD dEaF dea", "\0 \0 dea"),
        ] {
            assert_eq!(skeleton_of(body).unwrap(), expected.as_bytes(), "{body}");
        }
        assert_eq!(skeleton_of("a\0b"), None);
    }

    #[test]
    fn an_untemplated_body_has_an_id_of_its_own() {
        assert_eq!(UNTEMPLATED, xxh3_64(UNTEMPLATED_SKELETON) as i64);
        assert_eq!(template_id(b"x\0y"), UNTEMPLATED);
        assert_ne!(template_id(b"123"), UNTEMPLATED);
        assert_eq!(template_id(b"took 12 ms"), template_id(b"took 9 ms"));
        assert_ne!(template_id(b"took 12 ms"), template_id(b"took 12 s"));
    }

    proptest! {
        #[test]
        fn skeletons_follow_the_rule(body in "[ab19xzF_é :\\-.]{0,24}") {
            prop_assert_eq!(skeleton_of(&body).unwrap(), slow_skeleton(&body));
        }
    }

    proptest! {
        #[test]
        fn tokens_across_windows_follow_the_rule(
            parts in proptest::collection::vec(("[a-f]{0,70}|[a-zé]{0,70}|[a-f0-9]{0,70}|[A-F]{120,140}", "[ .]{0,2}"), 0..6)
        ) {
            let body: String = parts.into_iter().map(|(word, gap)| word + &gap).collect();
            prop_assert_eq!(skeleton_of(&body).unwrap(), slow_skeleton(&body));
        }
    }

    #[test]
    fn the_shared_model_gives_the_same_skeletons() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/models");
        if !std::path::Path::new(folder).join("needle.py").exists() {
            assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "shared models are missing");
            eprintln!("SKIPPED: shared models are missing");
            return;
        }
        let script = "import sys, json, random; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True\n\
            from needle import skeleton\n\
            r = random.Random(7); alphabet = 'abef19 -xzF_é.:/'\n\
            bodies = [''.join(r.choice(alphabet) for _ in range(r.randint(0, 30))) for _ in range(5000)]\n\
            sys.stdout.write(json.dumps([[b, skeleton(b)] for b in bodies]))\n";
        let output = match Command::new("python3").args(["-c", script, folder]).output() {
            Ok(o) if o.status.success() => o.stdout,
            other => {
                assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "cannot run python3: {other:?}");
                let _ = writeln!(std::io::stderr(), "SKIPPED: cannot run python3: {other:?}");
                return;
            }
        };
        let cases: Vec<(String, String)> = serde_json::from_slice(&output).unwrap();
        assert_eq!(cases.len(), 5000);
        for (body, expected) in cases {
            assert_eq!(skeleton_of(&body).unwrap(), expected.as_bytes(), "{body}");
        }
    }
}
