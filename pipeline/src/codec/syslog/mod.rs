//! Syslog messages: RFC 5424, RFC 3164 as it is really sent, and whatever else comes.
//!
//! Reading a message never fails: what is not understood is its text. **Not for** telling where a message ends on a
//! stream ([`frame`]).

pub mod frame;
mod time;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use memchr::memchr;

pub use time::UtcOffset;

/// Facility `user`, severity `notice`: what a message without a priority is of (RFC 3164, 4.3.3).
const DEFAULT_PRIORITY: u8 = 13;

/// Bytes of a tag; RFC 3164 has 32, RFC 5424 48, and container runtimes pass both.
const TAG_BYTES_MAX: usize = 128;
/// Bytes of a host name (RFC 5424).
const HOST_BYTES_MAX: usize = 255;
/// Parameters of structured data that become attributes; what is more stays with the text.
const PARAMETERS_MAX: usize = 256;

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// Levels by severity, and their OTLP numbers: each severity has its own.
const LEVELS: [(&str, i32); 8] = [
    ("fatal", 22),
    ("fatal", 21),
    ("critical", 18),
    ("error", 17),
    ("warn", 13),
    ("info", 10),
    ("info", 9),
    ("debug", 5),
];

/// One message. What it does not tell is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    priority: u8,
    /// Nanoseconds since the epoch.
    pub ts: Option<i64>,
    pub host: Option<&'a str>,
    /// The program: APP-NAME or tag.
    pub app: Option<&'a str>,
    pub pid: Option<&'a str>,
    pub message_id: Option<&'a str>,
    /// Structured data: `id.name`, value.
    pub data: Vec<(String, Cow<'a, str>)>,
    pub body: &'a str,
    /// It has neither a priority nor a time: hardly syslog.
    pub bare: bool,
}

impl<'a> Message<'a> {
    fn new(priority: u8, body: &'a str) -> Self {
        Message {
            priority,
            ts: None,
            host: None,
            app: None,
            pid: None,
            message_id: None,
            data: Vec::new(),
            body,
            bare: false,
        }
    }

    pub fn facility(&self) -> &'static str {
        FACILITIES[usize::from(self.priority >> 3).min(FACILITIES.len() - 1)]
    }

    /// Level and OTLP severity number.
    pub fn level(&self) -> (&'static str, i32) {
        LEVELS[usize::from(self.priority & 7)]
    }
}

/// Reads one message. `now`: nanoseconds since the epoch; `offset`: the zone of times that have none.
pub fn parse(text: &str, now: i64, offset: UtcOffset) -> Message<'_> {
    let text = text.trim_end_matches(['\n', '\r', '\0']);
    let Some((priority, rest)) = priority(text) else {
        let mut message = rfc3164(DEFAULT_PRIORITY, text, now, offset, false);
        message.bare = message.ts.is_none();
        return message;
    };
    if let Some(header) = rest.strip_prefix("1 ")
        && let Some(message) = rfc5424(priority, header)
    {
        return message;
    }
    rfc3164(priority, rest, now, offset, true)
}

/// `<0>` to `<191>`, and what follows.
fn priority(text: &str) -> Option<(u8, &str)> {
    let rest = text.strip_prefix('<')?;
    let (digits, rest) = rest.split_at_checked(memchr(b'>', rest.as_bytes().get(..4.min(rest.len()))?)?)?;
    let fine = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let priority = digits.parse::<u8>().ok().filter(|p| fine && usize::from(*p) < FACILITIES.len() * 8)?;
    Some((priority, &rest[1..]))
}

/// RFC 5424 behind its version. `None`: its header is not whole, so it is something else.
fn rfc5424(priority: u8, text: &str) -> Option<Message<'_>> {
    let mut rest = text;
    let mut field = || {
        let (field, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        (!field.is_empty()).then_some(field)
    };
    let (time, host, app, pid, id) = (field()?, field()?, field()?, field()?, field()?);
    let ts = match time {
        "-" => None,
        time => Some(time::rfc3339(time)?),
    };
    let long = [(host, HOST_BYTES_MAX), (app, TAG_BYTES_MAX), (pid, TAG_BYTES_MAX), (id, TAG_BYTES_MAX)];
    if long.iter().any(|(field, most)| field.len() > *most) {
        return None;
    }
    let told = |field| Some(field).filter(|f| *f != "-");
    let mut message = Message::new(priority, rest);
    (message.ts, message.host, message.app) = (ts, told(host), told(app));
    (message.pid, message.message_id) = (told(pid), told(id));
    if let Some((data, body)) = structured(rest) {
        message.data = data;
        message.body = body.strip_prefix('\u{feff}').unwrap_or(body);
    }
    Some(message)
}

type Data<'a> = Vec<(String, Cow<'a, str>)>;

/// Structured data and the text behind it. `None`: it is broken, or has too many parameters.
fn structured(text: &str) -> Option<(Data<'_>, &str)> {
    let mut data = Vec::new();
    let mut rest = text;
    if let Some(after) = text.strip_prefix('-') {
        rest = after;
    } else {
        while let Some(element) = rest.strip_prefix('[') {
            let end = element.find([' ', ']'])?;
            let (id, mut params) = element.split_at(end);
            while let Some(param) = params.strip_prefix(' ') {
                // Spaces before the bracket are not in the RFC, but sent.
                if param.starts_with([' ', ']']) {
                    params = param;
                    continue;
                }
                let (name, value) = param.split_once("=\"")?;
                if name.contains([' ', ']', '"']) || data.len() == PARAMETERS_MAX {
                    return None;
                }
                let (value, after) = quoted(value)?;
                data.push((format!("{id}.{name}"), value));
                params = after;
            }
            rest = params.strip_prefix(']')?;
        }
    }
    match rest.strip_prefix(' ') {
        Some(body) => Some((data, body)),
        None => rest.is_empty().then_some((data, rest)),
    }
}

/// A value up to its closing quote, and what follows it.
fn quoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut owned = String::new();
    let mut from = 0;
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' if owned.is_empty() => return Some((Cow::Borrowed(&text[..at]), &text[at + 1..])),
            b'"' => {
                owned.push_str(&text[from..at]);
                return Some((Cow::Owned(owned), &text[at + 1..]));
            }
            // Before anything else a backslash is itself (RFC 5424, 6.3.3).
            b'\\' if matches!(text.as_bytes().get(at + 1), Some(b'"' | b'\\' | b']')) => {
                owned.push_str(&text[from..at]);
                let (next, escaped) = bytes.next()?;
                owned.push(char::from(escaped));
                from = next + 1;
            }
            _ => {}
        }
    }
    None
}

/// RFC 3164 behind its priority, with what routers and libraries make of it.
fn rfc3164(priority: u8, text: &str, now: i64, offset: UtcOffset, has_priority: bool) -> Message<'_> {
    let mut message = Message::new(priority, text);
    let Some((ts, rest)) = time::leading(text, now, offset) else {
        if has_priority && let Some((app, pid, body)) = tag(text) {
            (message.app, message.pid, message.body) = (Some(app), pid, body);
        }
        return message;
    };
    message.ts = Some(ts);
    message.body = rest;
    if let Some((app, pid, body)) = tag(rest) {
        // No host: what libraries write to a local socket.
        (message.app, message.pid, message.body) = (Some(app), pid, body);
        return message;
    }
    let (host, after) = rest.split_once(' ').unwrap_or((rest, ""));
    if host.is_empty() || host.len() > HOST_BYTES_MAX || after.is_empty() {
        return message;
    }
    message.host = Some(host);
    message.body = after;
    if let Some((app, pid, body)) = tag(after) {
        (message.app, message.pid, message.body) = (Some(app), pid, body);
    }
    message
}

/// `name[pid]: text` or `name: text`.
fn tag(text: &str) -> Option<(&str, Option<&str>, &str)> {
    let end = text.find([' ', ':', '['])?;
    let (name, rest) = text.split_at(end);
    if name.is_empty() || end > TAG_BYTES_MAX {
        return None;
    }
    let (pid, rest) = match rest.strip_prefix('[') {
        None => (None, rest.strip_prefix(':')?),
        Some(inside) => {
            let (pid, rest) = inside.split_once(']')?;
            if pid.contains(' ') || pid.len() > TAG_BYTES_MAX {
                return None;
            }
            (Some(pid).filter(|p| !p.is_empty()), rest.strip_prefix(':').unwrap_or(rest))
        }
    };
    match rest.strip_prefix(' ') {
        Some(body) => Some((name, pid, body)),
        // A colon inside a word ends no tag: times and IPv6 addresses.
        None => rest.is_empty().then_some((name, pid, rest)),
    }
}
