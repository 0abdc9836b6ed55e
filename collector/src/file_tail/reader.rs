//! Bytes of a file to records: pure, without memory between calls.
//!
//! [`consume`] is given the bytes from a file's position on and says how many of them are done with. What it leaves it is
//! given again, longer. So the position is the whole state, and a restart continues exactly as if nothing had happened.
//!
//! Parts of a record (CRI `P`) are joined per stream, and records of the other stream may stand between them. The position
//! must then neither pass a part whose rest is missing, nor fall behind a record already delivered. Therefore such a *group*,
//! from the first part to where no stream has an open part, is consumed whole or not at all: what is delivered is always
//! exactly a prefix of the file.

use super::formats::{self, Format, Stream};

/// Bounds of one [`consume`].
#[derive(Clone, Copy, Debug)]
pub struct LineLimits {
    /// Longest record body; longer ones are split.
    pub line_bytes_max: usize,
    /// Longest group of parts; a longer one is delivered incomplete. Also the longest physical line of a container file.
    pub group_bytes_max: usize,
}

/// What shall be delivered though it is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Force {
    Nothing,
    /// Open parts: their rest did not come in time.
    Parts,
    /// Open parts and a last line without newline.
    All,
}

/// Why [`consume`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Everything was consumed.
    Empty,
    /// The last line has no newline yet.
    Line,
    /// A record's rest is missing.
    Parts,
    /// The receiver of the rows has enough for now.
    Room,
}

/// Something out of the ordinary that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// A record longer than the limit was cut; its rest is a record of its own.
    Split,
    /// Parts were delivered without the end of their record.
    Incomplete,
    /// A line that is not of the file's format was delivered as it stands.
    Malformed,
}

/// Takes the records.
pub trait Rows {
    /// `ts`: nanoseconds; `None` where the file has no time of its own. `stream`: `None` in plain files.
    fn row(&mut self, ts: Option<i64>, stream: Option<Stream>, body: &[u8]);
    fn odd(&mut self, what: Oddity);
    /// Whether more rows may come.
    fn room(&self) -> bool;
}

/// Joined bodies of one stream.
#[derive(Default)]
struct Open {
    ts: Option<i64>,
    body: Vec<u8>,
}

/// Buffers reused between calls; nothing in them outlives a call.
#[derive(Default)]
pub struct Scratch {
    open: [Open; 2],
}

/// `bytes`: what the file holds from its position on, possibly more to come. `mid_line`: the byte before is not a newline.
/// Returns the number of bytes done with, and why it stopped there.
pub fn consume(
    format: Format,
    bytes: &[u8],
    mid_line: bool,
    force: Force,
    limits: LineLimits,
    scratch: &mut Scratch,
    rows: &mut impl Rows,
) -> (usize, Wait) {
    match format {
        Format::Plain => plain(bytes, mid_line, force, limits, rows),
        Format::Cri | Format::DockerJson => container(format, bytes, force, limits, scratch, rows),
    }
}

fn plain(bytes: &[u8], mid_line: bool, force: Force, limits: LineLimits, rows: &mut impl Rows) -> (usize, Wait) {
    let mut at = 0;
    if mid_line {
        // The newline of a record that was delivered before it came.
        match bytes {
            [b'\n', ..] => at = 1,
            [b'\r', b'\n', ..] => at = 2,
            [b'\r'] if force < Force::All => return (0, Wait::Line),
            _ => {}
        }
    }
    loop {
        let rest = &bytes[at..];
        if rest.is_empty() {
            return (at, Wait::Empty);
        }
        if !rows.room() {
            return (at, Wait::Room);
        }
        // A writer that goes on at its old offset after a truncation leaves a hole, which reads as zeros.
        if rest[0] == 0 {
            at += rest.iter().take_while(|b| **b == 0).count();
            continue;
        }
        let window = &rest[..rest.len().min(limits.line_bytes_max + 2)];
        match memchr::memchr(b'\n', window) {
            Some(n) => {
                let line = rest[..n].strip_suffix(b"\r").unwrap_or(&rest[..n]);
                if line.len() > limits.line_bytes_max {
                    at += split(line, limits, rows);
                    continue;
                }
                rows.row(None, None, line);
                at += n + 1;
            }
            // Two more than the limit: a newline, perhaps after a carriage return, would have been seen.
            None if window.len() > limits.line_bytes_max + 1 => at += split(rest, limits, rows),
            None if force == Force::All => {
                rows.row(None, None, rest.strip_suffix(b"\r").unwrap_or(rest));
                return (bytes.len(), Wait::Empty);
            }
            None => return (at, Wait::Line),
        }
    }
}

/// Delivers the first `line_bytes_max` bytes, less what would cut a character; how many they are.
fn split(bytes: &[u8], limits: LineLimits, rows: &mut impl Rows) -> usize {
    let cut = char_boundary(bytes, limits.line_bytes_max);
    rows.row(None, None, &bytes[..cut]);
    rows.odd(Oddity::Split);
    cut
}

/// The last boundary of a UTF-8 character at or before `at`, never 0.
fn char_boundary(bytes: &[u8], at: usize) -> usize {
    let at = at.clamp(1, bytes.len());
    (at.saturating_sub(3).max(1)..=at).rev().find(|i| bytes.get(*i).is_none_or(|b| b & 0xC0 != 0x80)).unwrap_or(at)
}

fn container(
    format: Format,
    bytes: &[u8],
    force: Force,
    limits: LineLimits,
    scratch: &mut Scratch,
    rows: &mut impl Rows,
) -> (usize, Wait) {
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        if rest.is_empty() {
            return (at, Wait::Empty);
        }
        if !rows.room() {
            return (at, Wait::Room);
        }
        let Some(n) = memchr::memchr(b'\n', rest) else {
            if rest.len() >= limits.group_bytes_max {
                at += split_malformed(rest, limits, rows);
                continue;
            }
            if force == Force::All {
                group(format, rest, limits, scratch, rows);
                return (bytes.len(), Wait::Empty);
            }
            return (at, Wait::Line);
        };
        let line = &rest[..n];
        match formats::entry(format, line) {
            Some(e) if !e.partial => {
                at += n + 1;
                whole(e.ts, e.stream, &e.body, limits, rows);
            }
            None => {
                at += n + 1;
                malformed(line, limits, rows);
            }
            Some(_) => match group_end(format, rest) {
                Some(end) => {
                    group(format, &rest[..end], limits, scratch, rows);
                    at += end;
                }
                None if force == Force::All => {
                    group(format, rest, limits, scratch, rows);
                    at = bytes.len();
                }
                None if force == Force::Parts || rest.len() >= limits.group_bytes_max => {
                    let end = memchr::memrchr(b'\n', rest).map_or(rest.len(), |e| e + 1);
                    group(format, &rest[..end], limits, scratch, rows);
                    at += end;
                }
                None => return (at, Wait::Parts),
            },
        }
    }
}

/// A record that may be longer than the limit.
fn whole(ts: i64, stream: Stream, mut body: &[u8], limits: LineLimits, rows: &mut impl Rows) {
    while body.len() > limits.line_bytes_max {
        let cut = char_boundary(body, limits.line_bytes_max);
        rows.row(Some(ts), Some(stream), &body[..cut]);
        rows.odd(Oddity::Split);
        body = &body[cut..];
    }
    rows.row(Some(ts), Some(stream), body);
}

fn malformed(mut line: &[u8], limits: LineLimits, rows: &mut impl Rows) {
    rows.odd(Oddity::Malformed);
    while line.len() > limits.line_bytes_max {
        line = &line[split(line, limits, rows)..];
    }
    // An empty line of a container file holds nothing: not even an empty record, which has a time and a stream.
    if !line.is_empty() {
        rows.row(None, None, line);
    }
}

fn split_malformed(bytes: &[u8], limits: LineLimits, rows: &mut impl Rows) -> usize {
    rows.odd(Oddity::Malformed);
    split(bytes, limits, rows)
}

/// Where the group that begins at `bytes` ends: behind the first line after which no stream has an open part.
fn group_end(format: Format, bytes: &[u8]) -> Option<usize> {
    let mut open = [false; 2];
    let mut at = 0;
    while let Some(n) = memchr::memchr(b'\n', &bytes[at..]) {
        if let Some(e) = formats::entry(format, &bytes[at..at + n]) {
            open[e.stream as usize] = e.partial;
        }
        at += n + 1;
        if open == [false; 2] {
            return Some(at);
        }
    }
    None
}

/// Delivers all of `bytes`: whole lines of a group, or with an unfinished line at the end. What stays open is delivered too.
fn group(format: Format, bytes: &[u8], limits: LineLimits, scratch: &mut Scratch, rows: &mut impl Rows) {
    let mut at = 0;
    while at < bytes.len() {
        let n = memchr::memchr(b'\n', &bytes[at..]).unwrap_or(bytes.len() - at);
        let line = &bytes[at..at + n];
        at += n + 1;
        let Some(e) = formats::entry(format, line) else {
            malformed(line, limits, rows);
            continue;
        };
        let open = &mut scratch.open[e.stream as usize];
        let ts = *open.ts.get_or_insert(e.ts);
        if open.body.is_empty() && !e.partial {
            open.ts = None;
            whole(ts, e.stream, &e.body, limits, rows);
            continue;
        }
        if open.body.len() + e.body.len() > limits.line_bytes_max {
            open.body.extend_from_slice(&e.body);
            while open.body.len() > limits.line_bytes_max {
                let cut = char_boundary(&open.body, limits.line_bytes_max);
                rows.row(Some(ts), Some(e.stream), &open.body[..cut]);
                rows.odd(Oddity::Split);
                open.body.drain(..cut);
            }
        } else {
            open.body.extend_from_slice(&e.body);
        }
        if !e.partial {
            rows.row(Some(ts), Some(e.stream), &open.body);
            open.body.clear();
            open.ts = None;
        }
    }
    for (open, stream) in scratch.open.iter_mut().zip([Stream::Stdout, Stream::Stderr]) {
        if let Some(ts) = open.ts.take() {
            rows.row(Some(ts), Some(stream), &open.body);
            rows.odd(Oddity::Incomplete);
        }
        open.body.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen {
        rows: Vec<(Option<Stream>, String)>,
        odd: Vec<Oddity>,
        max: Option<usize>,
    }

    impl Rows for Seen {
        fn row(&mut self, _: Option<i64>, stream: Option<Stream>, body: &[u8]) {
            self.rows.push((stream, String::from_utf8_lossy(body).into_owned()));
        }
        fn odd(&mut self, what: Oddity) {
            self.odd.push(what);
        }
        fn room(&self) -> bool {
            self.max.is_none_or(|m| self.rows.len() < m)
        }
    }

    const LIMITS: LineLimits = LineLimits { line_bytes_max: 8, group_bytes_max: 400 };

    fn run(format: Format, bytes: &[u8], mid_line: bool, force: Force) -> (usize, Wait, Seen) {
        let mut seen = Seen::default();
        let (n, wait) = consume(format, bytes, mid_line, force, LIMITS, &mut Scratch::default(), &mut seen);
        (n, wait, seen)
    }

    fn bodies(seen: &Seen) -> Vec<&str> {
        seen.rows.iter().map(|(_, b)| b.as_str()).collect()
    }

    #[test]
    fn plain_lines_end_with_newline_or_by_force() {
        let (n, wait, seen) = run(Format::Plain, b"a\r\n\nb\nrest", false, Force::Parts);
        assert_eq!((n, wait, bodies(&seen)), (6, Wait::Line, vec!["a", "", "b"]));
        let (n, _, seen) = run(Format::Plain, b"rest", false, Force::All);
        assert_eq!((n, bodies(&seen)), (4, vec!["rest"]));
        // The newline of a record already delivered is not an empty record.
        let (n, _, seen) = run(Format::Plain, b"\nx\n", true, Force::Nothing);
        assert_eq!((n, bodies(&seen)), (3, vec!["x"]));
    }

    #[test]
    fn holes_of_zeros_hold_no_record() {
        let (n, _, seen) = run(Format::Plain, b"\0\0\0a\n", false, Force::Nothing);
        assert_eq!((n, bodies(&seen)), (5, vec!["a"]));
    }

    #[test]
    fn long_lines_are_split_between_characters_and_nothing_is_lost() {
        let (n, _, seen) = run(Format::Plain, "1234567ü9abcdefghi\n".as_bytes(), false, Force::Nothing);
        assert_eq!((n, bodies(&seen)), (20, vec!["1234567", "ü9abcde", "fghi"]));
        assert_eq!(seen.odd.len(), 2);
        // Exactly the limit is not too long, and a split line's newline is not a record.
        let (_, _, seen) = run(Format::Plain, b"12345678\n", false, Force::Nothing);
        assert_eq!((bodies(&seen), seen.odd.len()), (vec!["12345678"], 0));
    }

    fn cri(stream: &str, tag: &str, body: &str) -> String {
        format!("2026-01-01T00:00:00Z {stream} {tag} {body}\n")
    }

    #[test]
    fn parts_are_joined_per_stream_and_consumed_as_a_group() {
        let text = [
            cri("stdout", "F", "0"),
            cri("stdout", "P", "a"),
            cri("stderr", "F", "x"),
            cri("stderr", "P", "y"),
            cri("stdout", "F", "b"),
            cri("stderr", "F", "z"),
            cri("stdout", "F", "c"),
        ];
        let all = text.concat();
        let (n, wait, seen) = run(Format::Cri, all.as_bytes(), false, Force::Nothing);
        assert_eq!((n, wait), (all.len(), Wait::Empty));
        assert_eq!(bodies(&seen), ["0", "x", "ab", "yz", "c"]);
        // Every shorter prefix stops before the group, and the rest gives the rest.
        for cut in text[0].len()..text[..6].concat().len() {
            let (n, _, seen) = run(Format::Cri, &all.as_bytes()[..cut], false, Force::Nothing);
            assert_eq!((n, bodies(&seen)), (text[0].len(), vec!["0"]), "cut {cut}");
        }
    }

    #[test]
    fn parts_without_an_end_are_delivered_by_force_and_counted() {
        let text = cri("stdout", "P", "a") + &cri("stderr", "F", "x") + "2026-01-01T00:0";
        let (n, wait, seen) = run(Format::Cri, text.as_bytes(), false, Force::Parts);
        assert_eq!((n, wait), (text.len() - 15, Wait::Line));
        assert_eq!((bodies(&seen), &seen.odd[..]), (vec!["x", "a"], &[Oddity::Incomplete][..]));
        let long: String = (0..20).map(|_| cri("stdout", "P", "1")).collect();
        let (n, _, seen) = run(Format::Cri, long.as_bytes(), false, Force::Nothing);
        assert_eq!(n, long.len());
        assert_eq!(bodies(&seen), ["11111111", "11111111", "1111"]);
    }

    #[test]
    fn malformed_lines_are_kept_as_they_stand() {
        let text = format!("garbage\n\n{}", cri("stdout", "F", "ok"));
        let (n, _, seen) = run(Format::Cri, text.as_bytes(), false, Force::Nothing);
        assert_eq!(n, text.len());
        assert_eq!(seen.rows[0], (None, "garbage".to_owned()));
        assert_eq!(seen.rows[1], (Some(Stream::Stdout), "ok".to_owned()));
        assert_eq!(seen.odd, vec![Oddity::Malformed; 2]);
    }

    #[test]
    fn a_full_receiver_stops_between_records() {
        let mut seen = Seen { max: Some(1), ..Seen::default() };
        let got =
            consume(Format::Plain, b"a\nb\n", false, Force::Nothing, LIMITS, &mut Scratch::default(), &mut seen);
        assert_eq!((got, bodies(&seen)), ((2, Wait::Room), vec!["a"]));
    }
}
