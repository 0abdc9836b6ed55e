//! Names and numbers of severity to OTLP's 1 to 24.

/// Longest text that can be a severity's name.
const NAME_BYTES_MAX: usize = 16;

/// OTLP severity number and the text as it was. Numbers: 1 to 24 are OTLP's own; 30, 40, 50, 60 are those of loggers that
/// count in tens. Names: case does not matter; syslog's and the common loggers' are known.
pub fn severity_of(text: &str) -> Option<(i32, String)> {
    let text = text.trim();
    if let Ok(n) = text.parse::<i32>() {
        let number = match n {
            1..=24 => n,
            30 => 9,
            40 => 13,
            50 => 17,
            60 => 21,
            _ => return None,
        };
        return Some((number, severity_text(number).to_owned()));
    }
    if text.len() > NAME_BYTES_MAX {
        return None;
    }
    let lower = text.to_ascii_lowercase();
    let number = match lower.as_str() {
        "trace" | "trc" | "finest" => 1,
        "trace2" => 2,
        "trace3" => 3,
        "trace4" => 4,
        "debug" | "dbg" | "d" | "fine" | "verbose" => 5,
        "debug2" => 6,
        "debug3" => 7,
        "debug4" => 8,
        "info" | "inf" | "i" | "information" | "informational" | "log" => 9,
        "info2" | "notice" => 10,
        "info3" => 11,
        "info4" => 12,
        "warn" | "warning" | "wrn" | "w" => 13,
        "warn2" => 14,
        "warn3" => 15,
        "warn4" => 16,
        "error" | "err" | "e" | "eror" | "severe" => 17,
        "error2" => 18,
        "error3" => 19,
        "error4" => 20,
        "fatal" | "ftl" | "f" | "critical" | "crit" | "c" => 21,
        "fatal2" | "alert" | "a" => 22,
        "fatal3" | "emergency" | "emerg" | "panic" => 23,
        "fatal4" => 24,
        _ => return None,
    };
    Some((number, text.to_owned()))
}

/// The short name of an OTLP severity number.
pub fn severity_text(number: i32) -> &'static str {
    match number {
        1..=4 => "TRACE",
        5..=8 => "DEBUG",
        9..=12 => "INFO",
        13..=16 => "WARN",
        17..=20 => "ERROR",
        21..=24 => "FATAL",
        _ => "",
    }
}
