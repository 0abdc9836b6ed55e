//! The data directory: ours, of a version we know, and in use by one process only.
//!
//! `sightline.lock` is held by `flock` for as long as [`DataDir`] lives and holds the process id as text; `format` holds
//! the format version as text. Whatever is wrong is found before anything is written.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::OpenError;

/// Version of the layout of the data directory, the WAL and the parts' conventions.
pub const FORMAT_VERSION: u32 = 1;

const LOCK: &str = "sightline.lock";
const FORMAT: &str = "format";
const FORMAT_NEW: &str = "format.new";

/// A locked data directory. Dropping it releases the lock.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Version found, or written if the directory is new.
    version: u32,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if it is not there, checks that it is ours, and locks it. Blocking.
    pub fn open(path: impl Into<PathBuf>) -> Result<DataDir, OpenError> {
        let dir: PathBuf = path.into();
        let found = inspect(&dir)?;
        if found == Found::Nothing {
            fs::create_dir_all(&dir).map_err(|e| not_writable(&dir, e))?;
        }
        let lock = take_lock(&dir)?;
        // Again under the lock: another process may have made it ours, or newer, meanwhile.
        let version = match inspect(&dir)? {
            Found::Ours(version) => version,
            Found::Nothing | Found::Empty => {
                write_format(&dir)?;
                FORMAT_VERSION
            }
        };
        // Only for the message of the next one to come; a full disk must not keep us from serving what is there.
        if let Err(e) = write_pid(&lock) {
            tracing::warn!(dir = %dir.display(), error = %e, "cannot write the process id into the lock file");
        }
        Ok(DataDir { path: dir, version, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// At most [`FORMAT_VERSION`].
    pub fn version(&self) -> u32 {
        self.version
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    /// Nothing of anybody's: empty, or a first start that was interrupted.
    Empty,
    Ours(u32),
}

/// Looks without touching.
fn inspect(dir: &Path) -> Result<Found, OpenError> {
    let foreign = |reason: String| OpenError::Foreign { dir: dir.to_owned(), reason };
    let read = |path: PathBuf, source: io::Error| OpenError::Read { path, source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Err(foreign("it is a file".into())),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(not_writable(dir, e)),
        Err(e) => return Err(read(dir.to_owned(), e)),
    };
    let format = dir.join(FORMAT);
    match fs::read_to_string(&format) {
        Ok(text) => {
            let version = text
                .trim()
                .parse::<u32>()
                .map_err(|_| foreign(format!("its file `{FORMAT}` holds no version number")))?;
            return match version {
                0 => Err(foreign(format!("its file `{FORMAT}` holds version 0"))),
                v if v > FORMAT_VERSION => {
                    Err(OpenError::NewerVersion { dir: dir.to_owned(), found: v, known: FORMAT_VERSION })
                }
                v => Ok(Found::Ours(v)),
            };
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            return Err(foreign(format!("its file `{FORMAT}` is not text")));
        }
        Err(e) => return Err(read(format, e)),
    }
    for entry in entries {
        let entry = entry.map_err(|e| read(dir.to_owned(), e))?;
        let name = entry.file_name();
        // What a first start writes before the format file, and what a fresh file system brings.
        if !(name == LOCK || name == FORMAT_NEW || name == "lost+found") {
            return Err(foreign(format!("it holds {} and no file `{FORMAT}`", name.to_string_lossy())));
        }
    }
    Ok(Found::Empty)
}

fn not_writable(dir: &Path, source: io::Error) -> OpenError {
    OpenError::NotWritable { dir: dir.to_owned(), source }
}

fn take_lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK);
    // No truncation here: until the lock is ours, the content is another process's.
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|e| not_writable(dir, e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // A holder that has not written its id yet shows as 0.
            let _ = file.read_to_string(&mut text);
            Err(OpenError::Locked { dir: dir.to_owned(), pid: text.trim().parse().unwrap_or(0) })
        }
        Err(e) => Err(OpenError::Write { path, source: e.into() }),
    }
}

fn write_pid(mut lock: &File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

fn write_format(dir: &Path) -> Result<(), OpenError> {
    let temporary = dir.join(FORMAT_NEW);
    (|| {
        let mut file = File::create(&temporary)?;
        writeln!(file, "{FORMAT_VERSION}")?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FORMAT))?;
        File::open(dir)?.sync_all()?;
        // The directory's own name, too.
        if let Some(parent) = dir.canonicalize()?.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    })()
    .map_err(|e| not_writable(dir, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    }

    #[test]
    fn a_new_directory_becomes_ours_and_opens_again() {
        let t = tempfile::tempdir().unwrap();
        let dir = t.path().join("a/b");
        let open = DataDir::open(&dir).unwrap();
        assert_eq!(open.version(), FORMAT_VERSION);
        assert_eq!(names(&dir), [FORMAT, LOCK]);
        drop(open);
        fs::create_dir(dir.join("wal")).unwrap();
        assert_eq!(DataDir::open(&dir).unwrap().path(), dir);
    }

    #[test]
    fn a_directory_in_use_names_the_process() {
        let t = tempfile::tempdir().unwrap();
        let _held = DataDir::open(t.path()).unwrap();
        match DataDir::open(t.path()) {
            Err(OpenError::Locked { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_newer_or_foreign_directory_is_left_untouched() {
        let t = tempfile::tempdir().unwrap();
        fs::write(t.path().join(FORMAT), "2\n").unwrap();
        assert!(matches!(DataDir::open(t.path()), Err(OpenError::NewerVersion { found: 2, known: 1, .. })));
        assert_eq!(names(t.path()), [FORMAT]);
        for content in ["", "x", "-1", "0", "99999999999999999999"] {
            fs::write(t.path().join(FORMAT), content).unwrap();
            assert!(matches!(DataDir::open(t.path()), Err(OpenError::Foreign { .. })), "{content:?}");
        }
        assert_eq!(names(t.path()), [FORMAT]);

        let t = tempfile::tempdir().unwrap();
        fs::write(t.path().join("thesis.tex"), "x").unwrap();
        assert!(matches!(DataDir::open(t.path()), Err(OpenError::Foreign { .. })));
        assert_eq!(names(t.path()), ["thesis.tex"]);
        let file = t.path().join("thesis.tex");
        assert!(matches!(DataDir::open(&file), Err(OpenError::Foreign { .. })));
    }

    #[test]
    fn an_interrupted_first_start_is_taken_up() {
        let t = tempfile::tempdir().unwrap();
        fs::write(t.path().join(LOCK), "123\n").unwrap();
        fs::write(t.path().join(FORMAT_NEW), "").unwrap();
        assert_eq!(DataDir::open(t.path()).unwrap().version(), FORMAT_VERSION);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_not_writable() {
        // Also for root: nothing can be created below /proc.
        assert!(matches!(DataDir::open("/proc/sightline-test"), Err(OpenError::NotWritable { .. })));
    }
}
