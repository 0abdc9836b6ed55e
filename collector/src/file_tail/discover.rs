//! Which files to read: globs, and the rotated siblings of a file.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use storage::model::Labels;

use super::formats::Format;

/// Most files one discovery gives; the rest is ignored with a warning.
pub const FILES_MAX: usize = 65_536;
/// Deepest folder below a glob's first wildcard.
const DEPTH_MAX: usize = 32;

/// A file that is being written, with what its records are labelled with. Its rotated siblings belong to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    pub path: PathBuf,
    pub format: Format,
    /// Stream labels without `stream`, which each record brings.
    pub labels: Labels,
    /// Canonical JSON, for the column `attrs`.
    pub attrs: Option<String>,
    /// Whether a file never seen before is read from its beginning, or only what is added from now on.
    pub from_start: bool,
}

/// Says which files there are now. Called on a thread that may block.
pub trait Discover: Send {
    fn discover(&mut self) -> Vec<Arc<Target>>;
    /// Folders where something new may appear that [`Discover::discover`] would give.
    fn folders(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// Plain files by pattern.
pub struct Globs {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub format: Format,
    pub labels: Labels,
    pub from_start: bool,
}

impl Discover for Globs {
    fn discover(&mut self) -> Vec<Arc<Target>> {
        let mut paths = BTreeSet::new();
        for pattern in &self.include {
            glob(pattern, &mut paths);
        }
        // A pattern such as `*.log*` also names rotated siblings; they come with the file they belong to.
        let is_sibling = |p: &PathBuf| base_of_rotated(p).is_some_and(|base| paths.contains(&base));
        paths
            .iter()
            .filter(|p| !is_sibling(p) && !self.exclude.iter().any(|e| matches_path(e, p)))
            .map(|path| {
                let mut labels = self.labels.clone();
                if labels.get("filename").is_none() {
                    labels.set("filename", path.to_string_lossy());
                }
                let from_start = self.from_start;
                Arc::new(Target { path: path.clone(), format: self.format, labels, attrs: None, from_start })
            })
            .collect()
    }

    fn folders(&self) -> Vec<PathBuf> {
        let fixed = |p: &String| {
            let end = p.find(['*', '?']).unwrap_or(p.len());
            p[..end].rfind('/').map(|slash| PathBuf::from(&p[..slash.max(1)]))
        };
        self.include.iter().filter_map(fixed).collect()
    }
}

/// Whether `suffix` is what a rotation adds to a name: `.1`, `-20260101`, `.20260101-120000`. Compressed files are not read:
/// what they hold was read before they were compressed.
fn is_rotation_suffix(suffix: &[u8]) -> bool {
    matches!(suffix, [b'.' | b'-', first, rest @ ..]
        if first.is_ascii_digit() && rest.iter().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_' | b'T' | b'Z')))
}

/// The path that `path` was rotated away from, if its name looks so.
fn base_of_rotated(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.as_bytes();
    let cut = (1..name.len()).find(|i| is_rotation_suffix(&name[*i..]))?;
    Some(path.with_file_name(OsStr::from_bytes(&name[..cut])))
}

/// Rotated siblings of each of `paths` that has any, unordered. Each folder is listed once, however many files it holds.
pub fn rotated<'a>(paths: impl IntoIterator<Item = &'a Path>) -> HashMap<PathBuf, Vec<PathBuf>> {
    let mut folders: HashMap<&Path, HashSet<&[u8]>> = HashMap::new();
    for path in paths {
        if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
            folders.entry(folder).or_default().insert(name.as_bytes());
        }
    }
    let mut out: HashMap<PathBuf, Vec<PathBuf>> = HashMap::new();
    let mut found = 0;
    for (folder, names) in folders {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for entry in entries.flatten() {
            let sibling = entry.file_name();
            let sibling = sibling.as_bytes();
            let of = (1..sibling.len())
                .filter(|cut| names.contains(&sibling[..*cut]) && is_rotation_suffix(&sibling[*cut..]))
                .map(|cut| folder.join(OsStr::from_bytes(&sibling[..cut])));
            for path in of {
                out.entry(path).or_default().push(entry.path());
                found += 1;
            }
            if found >= FILES_MAX {
                return out;
            }
        }
    }
    out
}

/// The files that a pattern names: `*` and `?` within one folder, `**` for any depth.
pub fn paths(pattern: &str) -> BTreeSet<PathBuf> {
    let mut out = BTreeSet::new();
    glob(pattern, &mut out);
    out
}

/// Adds the files that `pattern` names: `*` and `?` within one folder, `**` for any depth. Symbolic links to files count.
pub(crate) fn glob(pattern: &str, out: &mut BTreeSet<PathBuf>) {
    let start = PathBuf::from(if pattern.starts_with('/') { "/" } else { "." });
    let parts: Vec<&str> = pattern.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    descend(&start, &parts, 0, out);
}

fn descend(folder: &Path, parts: &[&str], depth: usize, out: &mut BTreeSet<PathBuf>) {
    let Some((part, rest)) = parts.split_first() else { return };
    if depth > DEPTH_MAX || out.len() >= FILES_MAX {
        return;
    }
    if !part.contains(['*', '?']) {
        let path = folder.join(part);
        match rest {
            [] if path.is_file() => drop(out.insert(path)),
            [] => {}
            _ => descend(&path, rest, depth + 1, out),
        }
        return;
    }
    if *part == "**" {
        descend(folder, rest, depth + 1, out);
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if *part == "**" {
            // Links are not followed here: they may lead round in a circle.
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                descend(&path, parts, depth + 1, out);
            }
        } else if wildcard(part.as_bytes(), name.as_bytes()) {
            match rest {
                [] if path.is_file() && out.len() < FILES_MAX => drop(out.insert(path)),
                [] => {}
                _ => descend(&path, rest, depth + 1, out),
            }
        }
    }
}

/// Whether all of `path` matches `pattern`, where `*` stays within one folder and `**` does not.
fn matches_path(pattern: &str, path: &Path) -> bool {
    fn parts_match(pattern: &[&str], path: &[&[u8]]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((&"**", rest)), _) => {
                parts_match(rest, path) || path.split_first().is_some_and(|(_, p)| parts_match(pattern, p))
            }
            (Some((p, rest)), Some((name, names))) => wildcard(p.as_bytes(), name) && parts_match(rest, names),
            _ => false,
        }
    }
    let pattern: Vec<&str> = pattern.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    let path: Vec<&[u8]> =
        path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    parts_match(&pattern, &path)
}

/// `*` any run, `?` any byte. Linear in `name` for each `*`: on a mismatch only the latest `*` is tried longer.
fn wildcard(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match &mut star {
                Some((at, from)) => {
                    *from += 1;
                    (p, n) = (*at + 1, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_a_shell_does() {
        for (pattern, name, want) in [
            ("*.log", "a.log", true),
            ("*.log", "a.log.1", false),
            ("a*b*c", "aXbYbZc", true),
            ("?.log", "ab.log", false),
            ("*", "", true),
            ("a**", "abc", true),
        ] {
            assert_eq!(wildcard(pattern.as_bytes(), name.as_bytes()), want, "{pattern} {name}");
        }
        assert!(matches_path("/a/**/x.log", Path::new("/a/b/c/x.log")));
        assert!(!matches_path("/a/*/x.log", Path::new("/a/b/c/x.log")));
    }

    #[test]
    fn rotation_suffixes_are_told_from_other_names() {
        for good in [".1", "-20260101", ".20260101-120000", ".2026-01-01T00-00-00"] {
            assert!(is_rotation_suffix(good.as_bytes()), "{good}");
        }
        for bad in ["", ".gz", ".1.gz", ".tmp", ".log", "1", "."] {
            assert!(!is_rotation_suffix(bad.as_bytes()), "{bad}");
        }
        assert_eq!(base_of_rotated(Path::new("/v/app.log.1")), Some(PathBuf::from("/v/app.log")));
    }

    #[test]
    fn globs_give_files_once_and_leave_rotated_siblings_to_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        std::fs::create_dir_all(at("x/y")).unwrap();
        for f in ["a.log", "a.log.1", "b.txt", "x/c.log", "x/y/d.log", "x/skip.log"] {
            std::fs::write(at(f), "").unwrap();
        }
        let mut globs = Globs {
            include: vec![format!("{}/**/*.log*", dir.path().display())],
            exclude: vec!["/**/skip.*".to_owned()],
            format: Format::Plain,
            labels: Labels::default(),
            from_start: true,
        };
        let found: Vec<PathBuf> = globs.discover().iter().map(|t| t.path.clone()).collect();
        assert_eq!(found, [at("a.log"), at("x/c.log"), at("x/y/d.log")]);
        let live = [at("a.log"), at("absent.log")];
        let siblings = rotated(live.iter().map(PathBuf::as_path));
        assert_eq!(siblings, HashMap::from([(at("a.log"), vec![at("a.log.1")])]));
        assert_eq!(globs.folders(), [dir.path()]);
    }
}
