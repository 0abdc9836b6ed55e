//! Whose a bucket's folder is: an identity for ever, an owner for now, and what the data directory remembers of both.
//!
//! `sightline.json` in the folder holds the format version and an id, put there once. `owner.json` names the data directory
//! whose process writes; the process changes it every [`Remote::beat`] by conditional put. Another one that comes waits for
//! [`BEATS_TO_TAKE_OVER`] beats: sees a change and is refused, or sees none and takes over, and then the first, should it come
//! back, finds out with its next beat and writes no more. No clock is compared with another machine's.
//!
//! The file `store` of the data directory names store, id and the directory's own id, so that a write-ahead log is never
//! replayed into another bucket.
//!
//! What this does not do: between a takeover and the next beat of an owner that was only asleep, both may write. Each commit is
//! still one put-if-absent, and each owner's rows have a Delta transaction of their own, so nothing is lost or stored twice.

use std::{
    io,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{
    Objects as _, PutMode, Remote,
    bridge::{Bridged, away},
};
use crate::{OpenError, catalog::new_uuid, lock::FORMAT_VERSION, vfs::Vfs};

const IDENTITY: &str = "sightline.json";
const OWNER: &str = "owner.json";
/// In the data directory.
const MEMORY: &str = "store";

/// Beats without a sign of life after which an owner counts as gone.
const BEATS_TO_TAKE_OVER: u32 = 4;

/// How long a start waits for a store that does not answer.
const START_TRIES: usize = 4;
const START_PAUSE: Duration = Duration::from_secs(1);

/// Conditional puts of a lease that may meet somebody else's in a row.
const RACES_MAX: usize = 16;

#[derive(Debug, Serialize, Deserialize)]
struct Identity {
    format: u32,
    id: String,
}

/// What a data directory remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    /// As it was given: `s3://bucket/prefix`.
    store: String,
    id: String,
    /// Names this directory, and the transactions of its write-ahead log.
    writer: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Owner {
    writer: String,
    host: String,
    dir: String,
    pid: u32,
    /// Of one opening.
    session: String,
    /// Makes each version of this object another one.
    beat: u64,
    /// The owner stopped and left everything in order.
    released: bool,
}

/// A store that was opened and is ours to write to.
pub struct Claimed {
    pub lease: Lease,
    /// Names this data directory in the store.
    pub writer: String,
    /// Somebody else wrote here before, and may not know yet that it is over.
    pub taken_over: bool,
}

/// The right to write, for as long as it is renewed.
#[derive(Debug)]
pub struct Lease {
    bridge: Bridged,
    state: Mutex<(Owner, Option<String>)>,
    lost: Arc<OnceLock<String>>,
    pub beat: Duration,
}

fn refused(remote: &Remote, reason: String) -> OpenError {
    OpenError::Store { store: remote.name.clone(), reason }
}

/// The error of a store that cannot be opened, with what to look at.
fn unreachable(remote: &Remote, e: io::Error) -> OpenError {
    let at = remote.endpoint.as_ref().map(|e| format!(" at {e}")).unwrap_or_default();
    let reason = match (away(&e), e.kind()) {
        (None, io::ErrorKind::PermissionDenied) => {
            format!("it refuses us{at}; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy: {e}")
        }
        (None, io::ErrorKind::NotFound) => format!("there is no such bucket{at}; create it: {e}"),
        _ => format!("it does not answer{at}; check the network, AWS_ENDPOINT_URL, AWS_REGION and credentials: {e}"),
    };
    refused(remote, reason)
}

/// Tries again while the store is away, for a bounded time.
fn patiently<T>(remote: &Remote, mut call: impl FnMut() -> io::Result<T>) -> Result<io::Result<T>, OpenError> {
    for attempt in 1.. {
        match call() {
            Err(e) if away(&e).is_some() => {
                if attempt >= START_TRIES {
                    return Err(unreachable(remote, e));
                }
                tracing::warn!(store = remote.name, error = %e, "the store does not answer, trying again");
                std::thread::sleep(START_PAUSE);
            }
            other => return Ok(other),
        }
    }
    unreachable!("the loop returns")
}

/// Checks that `dir` is of no bucket, for an opening without one.
pub fn check_local(vfs: &dyn Vfs, dir: &Path) -> Result<(), OpenError> {
    match read_memory(vfs, dir)? {
        None => Ok(()),
        Some(m) => Err(OpenError::OtherStore {
            dir: dir.to_owned(),
            known: m.store.clone(),
            asked: "no other store".into(),
            hint: format!("start with --store {}", m.store),
        }),
    }
}

fn read_memory(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Memory>, OpenError> {
    let path = dir.join(MEMORY);
    match vfs.read(&path, 64 << 10) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::Read { path, source }),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| OpenError::Foreign {
            dir: dir.to_owned(),
            reason: format!("its file `{MEMORY}` does not say which store it belongs to: {e}"),
        }),
    }
}

/// Finds or founds the store, checks that the data directory belongs to it, and takes the lease.
pub fn claim(remote: &Remote, bridge: &Bridged, vfs: &dyn Vfs, dir: &Path) -> Result<Claimed, OpenError> {
    let memory = read_memory(vfs, dir)?;
    let other = |known: &str, hint: String| OpenError::OtherStore {
        dir: dir.to_owned(),
        known: known.to_owned(),
        asked: remote.name.clone(),
        hint,
    };
    match &memory {
        Some(m) if m.store != remote.name => {
            return Err(other(&m.store, format!("start with --store {} or another --data-dir", m.store)));
        }
        None => {
            for name in ["wal", "data"] {
                let path = dir.join(name);
                if vfs.exists(&path).map_err(|source| OpenError::Read { path, source })? {
                    return Err(other("a store of its own", "use another --data-dir with this store".into()));
                }
            }
        }
        Some(_) => {}
    }
    let found = identity(remote, bridge, memory.is_none())?;
    let memory = match memory {
        Some(m) if m.id != found.id => {
            let hint = "the bucket is not the one this directory's write-ahead log was made for";
            return Err(other(&format!("{} with id {}", m.store, m.id), format!("{hint}; its id is {}", found.id)));
        }
        Some(m) => m,
        None => {
            let fresh = Memory { store: remote.name.clone(), id: found.id, writer: new_uuid() };
            let text = serde_json::to_vec_pretty(&fresh).expect("strings are JSON");
            let path = dir.join(MEMORY);
            vfs.replace(&path, &text).map_err(|source| OpenError::Write { path, source })?;
            fresh
        }
    };
    let me = Owner {
        writer: memory.writer.clone(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        dir: std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()).display().to_string(),
        pid: std::process::id(),
        session: new_uuid(),
        beat: 0,
        released: false,
    };
    let (lease, taken_over) = take(remote, bridge, me)?;
    Ok(Claimed { lease, writer: memory.writer, taken_over })
}

/// Reads the identity, or gives one to an empty folder. `fresh`: this data directory knows none yet.
fn identity(remote: &Remote, bridge: &Bridged, fresh: bool) -> Result<Identity, OpenError> {
    for _ in 0..RACES_MAX {
        match patiently(remote, || bridge.get(IDENTITY))? {
            Ok(bytes) => {
                let found: Identity = serde_json::from_slice(&bytes)
                    .map_err(|e| refused(remote, format!("its object `{IDENTITY}` is not ours: {e}")))?;
                if found.format == 0 || found.format > FORMAT_VERSION {
                    let known = format!("this program knows versions up to {FORMAT_VERSION}; use a newer release");
                    return Err(refused(remote, format!("it has format version {}, {known}", found.format)));
                }
                return Ok(found);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && !no_bucket(&e) => {}
            Err(e) => return Err(unreachable(remote, e)),
        }
        if !fresh {
            let reason =
                "it holds no store, but this data directory belongs to one; was the bucket emptied or replaced?";
            return Err(refused(remote, reason.into()));
        }
        match patiently(remote, || bridge.list(""))? {
            Ok(all) if all.is_empty() => {}
            Ok(all) => {
                let name = &all[0].path;
                return Err(refused(remote, format!("it holds `{name}` and no `{IDENTITY}`; use an empty prefix")));
            }
            Err(e) => return Err(unreachable(remote, e)),
        }
        let fresh = Identity { format: FORMAT_VERSION, id: new_uuid() };
        let text = serde_json::to_vec(&fresh).expect("strings are JSON");
        // Whoever put it, it is read back.
        match patiently(remote, || bridge.put(IDENTITY, &text, PutMode::Create))? {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(unreachable(remote, e)),
            _ => {}
        }
    }
    Err(refused(remote, format!("its object `{IDENTITY}` comes and goes")))
}

fn no_bucket(e: &io::Error) -> bool {
    e.to_string().contains("NoSuchBucket")
}

/// The lease, and whether it was another's before.
fn take(remote: &Remote, bridge: &Bridged, me: Owner) -> Result<(Lease, bool), OpenError> {
    let text = serde_json::to_vec(&me).expect("strings are JSON");
    // The other owner's version first seen, and when.
    let mut watched: Option<(Option<String>, Instant)> = None;
    let mut races = 0;
    let mut waits = 0u32;
    while races < RACES_MAX {
        let (theirs, tag) = match patiently(remote, || bridge.get_tagged(OWNER))? {
            Ok((bytes, tag)) => {
                let theirs: Owner = serde_json::from_slice(&bytes)
                    .map_err(|e| refused(remote, format!("its object `{OWNER}` is not ours: {e}")))?;
                (theirs, tag)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                races += 1;
                match patiently(remote, || bridge.put(OWNER, &text, PutMode::Create))? {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(unreachable(remote, e)),
                    _ => continue, // read back, with its tag
                }
            }
            Err(e) => return Err(unreachable(remote, e)),
        };
        if theirs.session == me.session {
            let lease = Lease {
                bridge: bridge.clone(),
                state: Mutex::new((me, tag)),
                lost: Arc::default(),
                beat: remote.beat,
            };
            return Ok((lease, watched.is_some()));
        }
        if theirs.writer != me.writer && !theirs.released {
            let (first, since) = watched.get_or_insert_with(|| (tag.clone(), Instant::now()));
            if *first != tag {
                return Err(refused(
                    remote,
                    format!(
                        "the data directory {} of host {} (process {}) writes to it; stop that one, or use another prefix",
                        theirs.dir, theirs.host, theirs.pid
                    ),
                ));
            }
            if waits < BEATS_TO_TAKE_OVER * 2 || since.elapsed() < remote.beat * BEATS_TO_TAKE_OVER {
                waits += 1;
                std::thread::sleep(remote.beat / 2);
                continue;
            }
            tracing::warn!(
                store = remote.name,
                host = theirs.host,
                dir = theirs.dir,
                "taking over from an owner that shows no life"
            );
        }
        races += 1;
        match patiently(remote, || bridge.replace(OWNER, &text, tag.clone()))? {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(unreachable(remote, e)),
            _ => {} // read back
        }
    }
    Err(refused(remote, "several processes want it at once; start again".into()))
}

impl Lease {
    /// Says that we are alive. Finds out if the lease is another's by now: then every later write is refused.
    pub fn renew(&self) {
        self.write(false);
    }

    /// Lets the next one have it at once.
    pub fn release(&self) {
        if self.lost.get().is_none() {
            self.write(true);
        }
    }

    /// Why nothing may be written any more.
    pub fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    fn write(&self, released: bool) {
        let mut state = self.state.lock();
        let next = Owner { beat: state.0.beat + 1, released, ..state.0.clone() };
        let text = serde_json::to_vec(&next).expect("strings are JSON");
        match self.bridge.replace(OWNER, &text, state.1.clone()) {
            Ok(Some(tag)) => *state = (next, Some(tag)),
            // An answer without a tag, a lost answer of ours, or somebody else.
            Ok(None) => self.look(&mut state),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.look(&mut state),
            Err(e) => tracing::warn!(error = %e, "cannot renew the lease of the store, will try again"),
        }
    }

    fn look(&self, state: &mut (Owner, Option<String>)) {
        let Ok((bytes, tag)) = self.bridge.get_tagged(OWNER) else { return };
        match serde_json::from_slice::<Owner>(&bytes) {
            Ok(found) if found.session == state.0.session => *state = (found, tag),
            Ok(found) => {
                self.lose(format!("the data directory {} of host {} has taken it over", found.dir, found.host))
            }
            Err(_) => self.lose(format!("its object `{OWNER}` is not ours any more")),
        }
    }

    fn lose(&self, reason: String) {
        tracing::error!(reason, "this process may not write to its store any more; stop it");
        self.bridge.refuse(reason.clone());
        let _ = self.lost.set(reason);
    }
}
