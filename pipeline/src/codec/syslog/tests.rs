use bytes::BufMut as _;
use proptest::prelude::*;

use super::{
    UtcOffset,
    frame::{Frame, Frames},
    parse,
};

/// 2026-01-02T03:04:05Z.
const NOW: i64 = 1_767_323_045_000_000_000;
const HOUR: i64 = 3_600_000_000_000;

fn utc() -> UtcOffset {
    UtcOffset::default()
}

#[test]
fn messages_of_rfc_5424_are_read_whole() {
    // Examples of RFC 5424, 6.5.
    let m = parse(
        "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed",
        NOW,
        utc(),
    );
    assert_eq!((m.facility(), m.level(), m.ts), ("auth", ("critical", 18), Some(1_065_910_455_003_000_000)));
    assert_eq!((m.host, m.app, m.pid, m.message_id), (Some("mymachine.example.com"), Some("su"), None, Some("ID47")));
    assert_eq!((m.body, m.data.len(), m.bare), ("'su root' failed", 0, false));
    let text = r#"<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - [ex@1 iut="3" s="q\"b\\c\]d\n"][z@2 ] text"#;
    let m = parse(text, NOW, utc());
    let data: Vec<(&str, &str)> = m.data.iter().map(|(k, v)| (k.as_str(), &**v)).collect();
    assert_eq!(data, [("ex@1.iut", "3"), ("ex@1.s", "q\"b\\c]d\\n")]);
    assert_eq!((m.pid, m.body, m.facility()), (Some("8710"), "text", "local4"));
    for (text, body) in [
        ("<1>1 - - - - - -", ""),
        ("<1>1 - - - - - [a b=\"c\"]", ""),
        ("<1>1 - - - - - [a b=\"c] text", "[a b=\"c] text"),
        ("<1>1 - - - - - no data", "no data"),
        ("<1>1 - - - -", "1 - - - -"),
        ("<1>1 yesterday h a - - - t", "1 yesterday h a - - - t"),
    ] {
        assert_eq!(parse(text, NOW, utc()).body, body, "{text}");
    }
}

#[test]
fn messages_of_rfc_3164_are_read_as_they_are_sent() {
    type Wanted = (Option<i64>, Option<&'static str>, Option<&'static str>, Option<&'static str>, &'static str);
    let then = Some(NOW - 2 * HOUR);
    let cases: [(&str, Wanted); 17] = [
        ("<34>Jan  2 01:04:05 host su[12]: text: more", (then, Some("host"), Some("su"), Some("12"), "text: more")),
        ("<34>Jan 02 01:04:05 host su: text", (then, Some("host"), Some("su"), None, "text")),
        ("<34>Jan  2 01:04:05 su[12]: text", (then, None, Some("su"), Some("12"), "text")),
        ("<34>Jan  2 01:04:05 su: text", (then, None, Some("su"), None, "text")),
        ("<34>Jan  2 01:04:05 fe80::1 su: text", (then, Some("fe80::1"), Some("su"), None, "text")),
        ("<34>Jan  2 01:04:05 host no tag at all", (then, Some("host"), None, None, "no tag at all")),
        ("<34>Jan  2 2026 01:04:05 host su: t", (then, Some("host"), Some("su"), None, "t")),
        ("<34>2026-01-02T01:04:05Z host su: t", (then, Some("host"), Some("su"), None, "t")),
        ("<34>2026-01-02T03:04:05.000000+02:00 host su: t\n", (then, Some("host"), Some("su"), None, "t")),
        ("Jan  2 01:04:05 host su: t", (then, Some("host"), Some("su"), None, "t")),
        (
            "<189>123: *Jan  2 01:04:05.000: %SYS-5-CONFIG_I: done",
            (then, None, Some("%SYS-5-CONFIG_I"), None, "done"),
        ),
        ("<189>7: .Jan  2 01:04:05 UTC: %A-1-B: done", (then, None, Some("%A-1-B"), None, "done")),
        ("<13>su[1]: text", (None, None, Some("su"), Some("1"), "text")),
        ("<13>only text", (None, None, None, None, "only text")),
        ("error: all is broken", (None, None, None, None, "error: all is broken")),
        ("<999>x", (None, None, None, None, "<999>x")),
        ("", (None, None, None, None, "")),
    ];
    for (text, wanted) in cases {
        let m = parse(text, NOW, utc());
        assert_eq!((m.ts, m.host, m.app, m.pid, m.body), wanted, "{text}");
    }
    assert!(parse("plain", NOW, utc()).bare && !parse("<13>plain", NOW, utc()).bare);
    assert_eq!(parse("plain", NOW, utc()).facility(), "user");
}

#[test]
fn a_time_without_year_and_zone_is_the_nearest_one_of_the_receivers_zone() {
    let at = |text: &str, now: i64, offset: &str| {
        let offset = UtcOffset::try_from(offset.to_owned()).unwrap();
        parse(&format!("<13>{text} h a: t"), now, offset).ts.unwrap()
    };
    assert_eq!(at("Jan  2 03:04:05", NOW, "+02:00"), NOW - 2 * HOUR);
    assert_eq!(at("Jan  2 03:04:05", NOW, "-05:30"), NOW + 5 * HOUR + HOUR / 2);
    // New Year's Eve is two days ago, not almost a year ahead.
    assert_eq!(at("Dec 31 03:04:05", NOW, "Z"), NOW - 48 * HOUR);
    let eve = NOW - 50 * HOUR;
    assert_eq!(at("Jan  2 03:04:05", eve, "Z"), NOW);
    assert!(at("Feb 29 00:00:00", NOW, "Z") > 0);
    for bad in ["", "2", "+2:00", "+24:00", "+00:60", "02:00", "+0a:00"] {
        assert!(UtcOffset::try_from(bad.to_owned()).is_err(), "{bad}");
    }
}

/// The frames of a stream that comes in pieces of `piece` bytes.
fn frames(stream: &[u8], piece: usize, max: usize) -> Vec<(String, bool)> {
    let mut frames = Frames::new(max);
    let mut out = Vec::new();
    let text = |f: Frame| (String::from_utf8_lossy(&f.bytes).into_owned(), f.cut);
    for bytes in stream.chunks(piece.max(1)) {
        frames.buffer().put_slice(bytes);
        while let Some(frame) = frames.next() {
            out.push(text(frame));
        }
        assert!(frames.buffer().len() <= max + 16, "{}", frames.buffer().len());
    }
    out.extend(frames.last().map(text));
    out
}

#[test]
fn counted_messages_and_lines_may_be_mixed_and_come_in_pieces() {
    let stream = b"5 <1>ab<2>line\n\n12 <3>two\nlines<4>nul\x00\r\n12 monkeys\n2026 is a year\n<5>end";
    let wanted = ["<1>ab", "<2>line", "<3>two\nlines", "<4>nul", "12 monkeys", "2026 is a year"]
        .map(|t| (t.to_owned(), false));
    for piece in [1, 2, 3, 7, 1000] {
        let found = frames(stream, piece, 64);
        assert_eq!(found[..6], wanted, "pieces of {piece}");
        assert_eq!(found[6..], [("<5>end".to_owned(), true)]);
    }
}

#[test]
fn what_is_too_long_is_cut_and_the_next_message_is_whole() {
    let stream = b"11 <1>23456789<2>3456789\n<3>ok\n9 <4>";
    for piece in [1, 5, 1000] {
        let found = frames(stream, piece, 6);
        let wanted = [("<1>234", true), ("<2>345", true), ("<3>ok", false), ("<4>", true)];
        assert_eq!(found, wanted.map(|(t, cut)| (t.to_owned(), cut)), "pieces of {piece}");
    }
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic(text in ".{0,80}", head in "<[0-9]{0,4}>(1 )?", date in "[*.A-Za-z0-9: \\[\\]=\"\\\\-]{0,60}") {
        parse(&text, NOW, utc());
        parse(&format!("{head}{date}{text}"), NOW, utc());
        parse(&format!("{head}Jan  2 01:04:05{date}"), NOW, utc());
    }

    #[test]
    fn pieces_do_not_change_the_messages(stream in "([1-9]{0,2} ?<1>[a-z\n]{0,12}\n?){0,6}", piece in 1usize..9, max in 3usize..20) {
        prop_assert_eq!(frames(stream.as_bytes(), piece, max), frames(stream.as_bytes(), 1000, max));
    }
}
