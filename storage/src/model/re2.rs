//! RE2 syntax to the `regex` crate's: the few constructs the two read differently.

use regex::{Regex, RegexBuilder};

use super::re2_fault::fault;

/// Largest compiled size of one expression, bytes.
pub const REGEX_BYTES_MAX: usize = 8 << 20;

/// Compiles RE2 syntax. The error is one line.
pub fn compile(re2: &str) -> Result<Regex, String> {
    compile_one_of(re2, 1)
}

/// As [`compile`], one of `many` that are used together and share the memory for what is cached while they match.
pub fn compile_one_of(re2: &str, many: usize) -> Result<Regex, String> {
    let cached = REGEX_BYTES_MAX / many.max(1);
    RegexBuilder::new(&translate(re2))
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(cached)
        .build()
        .map_err(|e| told(re2, &e))
}

/// Why `re2` did not compile, in one line: in the words of Go's `regexp` where it has any.
pub fn told(re2: &str, error: &regex::Error) -> String {
    if let (regex::Error::Syntax(_), Some(fault)) = (error, fault(re2)) {
        return fault;
    }
    let text = error.to_string();
    format!("error parsing regexp: {}", text.lines().last().unwrap_or("").trim_start_matches("error: "))
}

/// RE2's `\d \w \s \b` are ASCII, `\Q..\E` quotes, an opening brace that begins no repetition is literal, and a class
/// knows no set operations or nested classes.
pub fn translate(re2: &str) -> String {
    let mut out = String::with_capacity(re2.len() + 8);
    let mut rest = re2;
    let mut in_class = false;
    let mut class_start = false;
    while let Some(c) = rest.chars().next() {
        let tail = &rest[c.len_utf8()..];
        let first_in_class = std::mem::replace(&mut class_start, false);
        match c {
            '\\' => {
                let Some(e) = tail.chars().next() else {
                    out.push('\\');
                    break;
                };
                rest = &tail[e.len_utf8()..];
                match e {
                    'Q' => {
                        let n = rest.find("\\E").unwrap_or(rest.len());
                        out.push_str(&regex::escape(&rest[..n]));
                        rest = rest.get(n + 2..).unwrap_or("");
                    }
                    'd' => out.push_str(if in_class { "0-9" } else { "[0-9]" }),
                    'w' => out.push_str(if in_class { "0-9A-Za-z_" } else { "[0-9A-Za-z_]" }),
                    's' => out.push_str(if in_class { r"\t\n\x0C\r " } else { r"[\t\n\x0C\r ]" }),
                    'D' => out.push_str("[^0-9]"),
                    'W' => out.push_str("[^0-9A-Za-z_]"),
                    'S' => out.push_str(r"[^\t\n\x0C\r ]"),
                    'b' if !in_class => out.push_str(r"(?-u:\b)"),
                    '<' | '>' => out.push(e),
                    _ => {
                        out.push('\\');
                        out.push(e);
                    }
                }
                continue;
            }
            '[' if !in_class => {
                in_class = true;
                class_start = true;
                out.push('[');
                rest = tail;
                if let Some(after) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = after;
                }
                continue;
            }
            ']' if in_class && !first_in_class => {
                in_class = false;
                out.push(']');
            }
            '[' if in_class => {
                if let Some(n) = tail.strip_prefix(':').and_then(|t| t.find(":]")) {
                    out.push('[');
                    out.push_str(&tail[..n + 3]);
                    rest = &tail[n + 3..];
                    continue;
                }
                out.push_str("\\[");
            }
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && tail.starts_with('-') => out.push_str("\\-"),
            '{' if !in_class && !is_repetition(tail) => out.push_str("\\{"),
            _ => out.push(c),
        }
        rest = tail;
    }
    out
}

/// Whether `3}`, `3,}` or `3,5}` follows.
fn is_repetition(tail: &str) -> bool {
    let Some(n) = tail.find('}') else { return false };
    let (low, high) = tail[..n].split_once(',').unwrap_or((&tail[..n], ""));
    !low.is_empty() && low.bytes().all(|b| b.is_ascii_digit()) && high.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::compile;

    #[test]
    fn re2_meaning_is_kept() {
        let hit = |re: &str, text: &str| compile(re).unwrap().is_match(text);
        assert!(hit(r"\Qa.b\E", "a.b") && !hit(r"\Qa.b\E", "axb"));
        assert!(!hit(r"^\d$", "٣") && hit(r"^[\d]$", "3"));
        assert!(hit("{a}", "{a}") && hit("a{2}", "aa") && hit("^[[a]$", "[") && hit("^[]a]$", "]"));
        assert!(hit("^[a&&b]+$", "&a") && hit("[[:digit:]]", "7"));
        assert!(!hit("a.b", "a\nb") && hit("(?s)a.b", "a\nb"));
        assert!(hit(r"\bé", " xé") == hit(r"\bé", "xé"));
        assert!(compile("(").is_err() && compile("a{1000000}{1000}").is_err());
    }
}
