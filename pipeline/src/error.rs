//! Errors of the pipeline's configuration, each with its place and the nearest valid name.

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}{}", .nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
pub struct ConfigError {
    /// Into the configuration: `transforms.parse.inputs[0]`.
    pub path: String,
    pub message: String,
    /// The nearest valid name, where a name is wrong.
    pub nearest: Option<String>,
}

impl ConfigError {
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        ConfigError { path: path.into(), message: message.into(), nearest: None }
    }
}

/// Everything wrong with the configuration, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct BuildError(pub Vec<ConfigError>);

/// The candidate with the least edits to `word`, if they are few enough to be a slip.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = 1 + word.chars().count() / 3;
    candidates.into_iter().map(|c| (edits(word, c), c)).filter(|(d, _)| *d <= allowed).min().map(|(_, c)| c)
}

/// Longest name that is compared: edits cost the product of two lengths.
const NAME_CHARS_MAX: usize = 128;

/// Insertions, deletions, substitutions and swaps of neighbours between two names.
fn edits(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(NAME_CHARS_MAX).flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().take(NAME_CHARS_MAX).flat_map(char::to_lowercase).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (previous[j] + 1).min(row[j - 1] + 1).min(previous[j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut previous, row);
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_a_slip_away_or_none() {
        let names = ["containers", "otlp", "host"];
        assert_eq!(nearest("contianers", names), Some("containers"));
        assert_eq!(nearest("Otlp", names), Some("otlp"));
        assert_eq!(nearest("kafka", names), None);
        assert_eq!(nearest("", names), None);
    }
}
