//! A file system and a clock in memory, for tests: deterministic from a seed, and as cruel as a real disk may be.
//!
//! What a power cut ([`SimVfs::crash`]) does to bytes that were not synced: they are lost, kept, cut at any byte, or kept
//! in some 512-byte sectors and zero in others. Names that were not synced: any prefix or any subset of the
//! operations survives. Folders themselves are durable once made (the real implementation syncs their parents).
//! A failed `sync_data` makes of the dirty bytes what a power cut would, at once and for good, while reads go on
//! showing the bytes that were written (ext4 marks the pages clean).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{Clock, Metadata, Space, Vfs, VfsFile};
use crate::model::Timestamp;

const SECTOR: usize = 512;

/// `ENOSPC`, `EIO` as the kernel numbers them, so that callers see what a real disk gives.
const ENOSPC: i32 = 28;
const EIO: i32 = 5;

/// SplitMix64 (Steele, Lea, Flood 2014): a small generator whose whole state is its seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next_u64() % n as u64) as usize }
    }

    /// True `per_mille` times in 1,000.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < per_mille as usize
    }
}

/// What can go wrong, drawn anew at each operation. All zero: nothing does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// `EIO` of a read, per mille.
    pub read: u32,
    /// `EIO` of an append after any prefix was written, per mille.
    pub write: u32,
    /// `EIO` of `sync_data`, which also loses the dirty bytes, per mille.
    pub sync: u32,
    /// `EIO` of creating, renaming, removing, syncing a folder, per mille.
    pub name: u32,
    /// Bytes the disk holds; a write past it writes what fits and fails with `ENOSPC`.
    pub space: Option<u64>,
}

/// Which kind of operation [`SimVfs::fail_next`] arms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Read,
    Append,
    Sync,
    SetLen,
    Create,
    Rename,
    Remove,
    SyncDir,
}

/// A file system in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct SimVfs {
    disk: Arc<Mutex<Disk>>,
}

#[derive(Debug)]
struct Disk {
    rng: Rng,
    faults: Faults,
    armed: HashMap<Op, u32>,
    /// Changing operations left until the power goes; `None`: never.
    power: Option<u64>,
    dead: bool,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    pending_names: Vec<NameOp>,
    folders: BTreeSet<PathBuf>,
    tick: i64,
    syncs: u64,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<DataOp>,
    modified: i64,
}

#[derive(Clone, Debug)]
enum DataOp {
    Write { at: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Clone, Debug)]
enum NameOp {
    Link { path: PathBuf, inode: u64 },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, inode: u64 },
}

impl DataOp {
    fn apply(&self, to: &mut Vec<u8>, upto: usize) {
        match self {
            DataOp::Write { at, bytes } => {
                let bytes = &bytes[..upto.min(bytes.len())];
                if to.len() < at + bytes.len() {
                    to.resize(at + bytes.len(), 0);
                }
                to[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            DataOp::SetLen(n) => to.resize(*n, 0),
        }
    }
}

impl NameOp {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            NameOp::Link { path, inode } => {
                names.insert(path.clone(), *inode);
            }
            NameOp::Unlink { path } => {
                names.remove(path);
            }
            NameOp::Rename { from, to, inode } => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }

    fn touches(&self, folder: &Path) -> bool {
        match self {
            NameOp::Link { path, .. } | NameOp::Unlink { path } => path.parent() == Some(folder),
            NameOp::Rename { from, to, .. } => from.parent() == Some(folder) || to.parent() == Some(folder),
        }
    }
}

impl Inode {
    /// What is on the platter if the power goes now.
    fn after_power_cut(&self, rng: &mut Rng) -> Vec<u8> {
        let mut out = self.durable.clone();
        let ops = self.pending.len();
        match rng.below(5) {
            0 => {}
            1 => self.pending.iter().for_each(|op| op.apply(&mut out, usize::MAX)),
            2 | 3 => {
                let whole = rng.below(ops + 1);
                self.pending[..whole].iter().for_each(|op| op.apply(&mut out, usize::MAX));
                if let Some(DataOp::Write { bytes, .. }) = self.pending.get(whole) {
                    let upto = rng.below(bytes.len() + 1);
                    self.pending[whole].apply(&mut out, upto);
                }
            }
            _ => {
                let whole = rng.below(ops + 1);
                let before = out.clone();
                self.pending[..whole].iter().for_each(|op| op.apply(&mut out, usize::MAX));
                for (i, sector) in out.chunks_mut(SECTOR).enumerate() {
                    let at = i * SECTOR;
                    let same = before.get(at..at + sector.len()).is_some_and(|b| b == sector);
                    if !same && rng.chance(500) {
                        for (k, byte) in sector.iter_mut().enumerate() {
                            *byte = before.get(at + k).copied().unwrap_or(0);
                        }
                    }
                }
            }
        }
        out
    }
}

impl Disk {
    fn check(&mut self, op: Op) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if op != Op::Read {
            if let Some(left) = &mut self.power {
                if *left == 0 {
                    self.dead = true;
                    return Err(io::Error::from_raw_os_error(EIO));
                }
                *left -= 1;
            }
            self.tick += 1;
        }
        if let Some(n) = self.armed.get_mut(&op).filter(|n| **n > 0) {
            *n -= 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        let per_mille = match op {
            Op::Read => self.faults.read,
            Op::Append => self.faults.write,
            Op::Sync => self.faults.sync,
            Op::SetLen => 0, // only when armed
            _ => self.faults.name,
        };
        if per_mille > 0 && self.rng.chance(per_mille) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    fn used(&self) -> u64 {
        self.names.values().filter_map(|i| self.inodes.get(i)).map(|i| i.live.len() as u64).sum()
    }

    fn inode_of(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl SimVfs {
    /// An empty disk with the root folder `/`.
    pub fn new(seed: u64) -> Self {
        SimVfs {
            disk: Arc::new(Mutex::new(Disk {
                rng: Rng::new(seed),
                faults: Faults::default(),
                armed: HashMap::new(),
                power: None,
                dead: false,
                inodes: HashMap::new(),
                next_inode: 1,
                names: BTreeMap::new(),
                durable_names: BTreeMap::new(),
                pending_names: Vec::new(),
                folders: BTreeSet::from([PathBuf::from("/")]),
                tick: 0,
                syncs: 0,
            })),
        }
    }

    pub fn set_faults(&self, faults: Faults) {
        self.disk.lock().faults = faults;
    }

    /// The next `times` operations of this kind fail with `EIO`.
    pub fn fail_next(&self, op: Op, times: u32) {
        self.disk.lock().armed.insert(op, times);
    }

    /// The power goes at the changing operation after `operations` more: that one and all later ones fail.
    pub fn cut_power_after(&self, operations: u64) {
        self.disk.lock().power = Some(operations);
    }

    /// Good `sync_data` calls so far.
    pub fn syncs(&self) -> u64 {
        self.disk.lock().syncs
    }

    /// Cuts the power now, if it is not cut yet, and gives the disk as found afterwards, without faults. Every handle
    /// of this one fails from here on.
    pub fn crash(&self) -> SimVfs {
        let mut old = self.disk.lock();
        old.dead = true;
        let seed = old.rng.next_u64();
        let mut rng = old.rng.clone();
        let mut names = old.durable_names.clone();
        let upto = rng.below(old.pending_names.len() + 1);
        let subset = rng.chance(500);
        for (i, op) in old.pending_names.iter().enumerate() {
            if if subset { rng.chance(500) } else { i < upto } {
                op.apply(&mut names);
            }
        }
        let fresh = SimVfs::new(seed);
        {
            let mut disk = fresh.disk.lock();
            // By number, not by name: names of parts are random, and a seed must give the same disk again.
            for inode in names.values().collect::<BTreeSet<_>>() {
                if let Some(found) = old.inodes.get(inode) {
                    let bytes = found.after_power_cut(&mut rng);
                    disk.inodes.insert(
                        *inode,
                        Inode { live: bytes.clone(), durable: bytes, pending: Vec::new(), modified: found.modified },
                    );
                }
            }
            disk.names = names.clone();
            disk.durable_names = names;
            disk.folders = old.folders.clone();
            disk.next_inode = old.next_inode;
            disk.tick = old.tick;
        }
        fresh
    }

    /// Changes bytes on the platter behind everybody's back, as rot does.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let inode = disk.inode_of(path)?;
        let found = disk.inodes.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?;
        change(&mut found.live);
        found.durable = found.live.clone();
        found.pending.clear();
        Ok(())
    }
}

impl Vfs for SimVfs {
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut disk = self.disk.lock();
        disk.check(Op::Create)?;
        if !path.parent().is_some_and(|p| disk.folders.contains(p)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if disk.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if disk.faults.space.is_some_and(|s| disk.used() >= s) {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        let inode = disk.next_inode;
        disk.next_inode += 1;
        let modified = disk.tick;
        disk.inodes.insert(inode, Inode { modified, ..Inode::default() });
        disk.names.insert(path.to_owned(), inode);
        disk.pending_names.push(NameOp::Link { path: path.to_owned(), inode });
        Ok(Arc::new(SimFile { disk: self.disk.clone(), inode }))
    }

    fn open_append(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        self.open_read(path)
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn VfsFile>> {
        let mut disk = self.disk.lock();
        disk.check(Op::Read)?;
        let inode = disk.inode_of(path)?;
        Ok(Arc::new(SimFile { disk: self.disk.clone(), inode }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check(Op::Rename)?;
        let inode = disk.inode_of(from)?;
        let op = NameOp::Rename { from: from.to_owned(), to: to.to_owned(), inode };
        op.apply(&mut disk.names);
        disk.pending_names.push(op);
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check(Op::Create)?;
        let inode = disk.inode_of(from)?;
        if disk.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let op = NameOp::Link { path: to.to_owned(), inode };
        op.apply(&mut disk.names);
        disk.pending_names.push(op);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check(Op::Remove)?;
        disk.inode_of(path)?;
        let op = NameOp::Unlink { path: path.to_owned() };
        op.apply(&mut disk.names);
        disk.pending_names.push(op);
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        for folder in path.ancestors() {
            disk.folders.insert(folder.to_owned());
        }
        Ok(())
    }

    fn list_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut disk = self.disk.lock();
        disk.check(Op::Read)?;
        if !disk.folders.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let files = disk.names.keys().chain(&disk.folders).filter(|p| p.parent() == Some(path));
        let mut out: Vec<String> =
            files.filter_map(|p| p.file_name().and_then(|n| n.to_str()).map(str::to_owned)).collect();
        out.sort();
        Ok(out)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.check(Op::SyncDir)?;
        let (now, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut disk.pending_names).into_iter().partition(|op| op.touches(path));
        now.iter().for_each(|op| op.apply(&mut disk.durable_names));
        disk.pending_names = later;
        Ok(())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let disk = self.disk.lock();
        if disk.folders.contains(path) {
            return Ok(Metadata { len: 0, modified: Timestamp(0), is_dir: true });
        }
        let inode = disk.inode_of(path)?;
        let found = disk.inodes.get(&inode).ok_or(io::ErrorKind::NotFound)?;
        Ok(Metadata { len: found.live.len() as u64, modified: Timestamp(found.modified), is_dir: false })
    }

    fn space(&self, _path: &Path) -> io::Result<Space> {
        let disk = self.disk.lock();
        let used = disk.used();
        let total = disk.faults.space.unwrap_or(1 << 40);
        Ok(Space { used, available: total.saturating_sub(used), total })
    }
}

#[derive(Debug)]
struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
}

impl SimFile {
    fn with<T>(&self, op: Op, f: impl FnOnce(&mut Disk, io::Result<()>) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        let verdict = disk.check(op);
        if disk.dead {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        f(&mut disk, verdict)
    }
}

impl VfsFile for SimFile {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(Op::Read, |disk, verdict| {
            verdict?;
            let live = &disk.inodes[&self.inode].live;
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(live.len());
            let n = out.len().min(live.len() - from);
            out[..n].copy_from_slice(&live[from..from + n]);
            Ok(n)
        })
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        self.with(Op::Append, |disk, mut verdict| {
            let mut n = bytes.len();
            if verdict.is_err() {
                n = disk.rng.below(n + 1);
            }
            let room = disk.faults.space.map_or(u64::MAX, |s| s.saturating_sub(disk.used()));
            if (n as u64) > room {
                n = room as usize;
                verdict = Err(io::Error::from_raw_os_error(ENOSPC));
            }
            let tick = disk.tick;
            let inode = disk.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
            let at = inode.live.len();
            inode.live.extend_from_slice(&bytes[..n]);
            inode.pending.push(DataOp::Write { at, bytes: bytes[..n].to_vec() });
            inode.modified = tick;
            verdict
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(Op::Sync, |disk, verdict| {
            let mut rng = Rng::new(disk.rng.next_u64());
            let inode = disk.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
            if verdict.is_err() {
                inode.durable = inode.after_power_cut(&mut rng);
                inode.pending.clear();
                return verdict;
            }
            let pending = std::mem::take(&mut inode.pending);
            pending.iter().for_each(|op| op.apply(&mut inode.durable, usize::MAX));
            disk.syncs += 1;
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(Op::SetLen, |disk, verdict| {
            verdict?;
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let inode = disk.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
            inode.live.resize(len, 0);
            inode.pending.push(DataOp::SetLen(len));
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(Op::Read, |disk, verdict| {
            verdict?;
            Ok(disk.inodes[&self.inode].live.len() as u64)
        })
    }
}

/// A clock that stands still until told otherwise; both hands move together.
#[derive(Debug, Default)]
pub struct SimClock {
    nanos: AtomicI64,
    since: AtomicI64,
}

impl SimClock {
    pub fn new(now: Timestamp) -> Self {
        SimClock { nanos: AtomicI64::new(now.nanos()), since: AtomicI64::new(0) }
    }

    /// Sets the wall clock only, also backwards.
    pub fn set(&self, now: Timestamp) {
        self.nanos.store(now.nanos(), Ordering::SeqCst);
    }

    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        self.nanos.fetch_add(by, Ordering::SeqCst);
        self.since.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.nanos.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.since.load(Ordering::SeqCst).unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> &Path {
        Path::new(s)
    }

    #[test]
    fn synced_bytes_under_a_synced_name_survive_every_power_cut() {
        for seed in 0..200 {
            let vfs = SimVfs::new(seed);
            let f = vfs.create_new(p("/f")).unwrap();
            f.append(&[7; 2000]).unwrap();
            f.sync_data().unwrap();
            vfs.sync_dir(p("/")).unwrap();
            f.append(&[8; 2000]).unwrap();
            let after = vfs.crash();
            assert!(f.append(b"x").is_err());
            let got = after.read(p("/f"), 10_000).unwrap();
            assert_eq!(got[..2000], [7; 2000], "seed {seed}");
            assert!(got.len() <= 4000);
        }
    }

    #[test]
    fn unsynced_names_and_bytes_are_sometimes_lost_and_sometimes_torn() {
        let (mut gone, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..300 {
            let vfs = SimVfs::new(seed);
            let f = vfs.create_new(p("/f")).unwrap();
            f.append(&[7; 2000]).unwrap();
            match vfs.crash().read(p("/f"), 10_000) {
                Err(_) => gone += 1,
                Ok(b) if b == vec![7; 2000] => kept += 1,
                Ok(_) => torn += 1,
            }
        }
        assert!(gone > 20 && kept > 20 && torn > 20, "{gone} {kept} {torn}");
    }

    #[test]
    fn a_failed_sync_loses_what_a_later_good_one_does_not_bring_back() {
        let mut lost = 0;
        for seed in 0..100 {
            let vfs = SimVfs::new(seed);
            let f = vfs.create_new(p("/f")).unwrap();
            vfs.sync_dir(p("/")).unwrap();
            f.append(&[7; 100]).unwrap();
            vfs.fail_next(Op::Sync, 1);
            assert!(f.sync_data().is_err());
            f.append(&[8; 10]).unwrap();
            f.sync_data().unwrap();
            assert_eq!(vfs.read(p("/f"), 1000).unwrap()[..100], [7; 100]);
            let got = vfs.crash().read(p("/f"), 1000).unwrap();
            assert_eq!(got[100..], [8; 10]);
            lost += usize::from(got[..100] != [7; 100]);
        }
        assert!(lost > 20, "{lost}");
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_resumes() {
        let vfs = SimVfs::new(1);
        let f = vfs.create_new(p("/f")).unwrap();
        vfs.set_faults(Faults { space: Some(100), ..Faults::default() });
        assert_eq!(f.append(&[1; 150]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(f.len().unwrap(), 100);
        f.set_len(10).unwrap();
        f.append(&[1; 50]).unwrap();
        assert_eq!(vfs.space(p("/")).unwrap().available, 40);
    }

    #[test]
    fn a_clock_moves_only_when_told() {
        let clock = SimClock::new(Timestamp(5));
        clock.advance(Duration::from_nanos(7));
        assert_eq!((clock.now(), clock.monotonic()), (Timestamp(12), Duration::from_nanos(7)));
    }
}
