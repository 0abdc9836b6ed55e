use super::*;
use crate::object::LocalStore;

const PART: &str = "data/t/logs/day=2026-01-01/l0-a.parquet";

/// Counts what is fetched.
#[derive(Debug)]
struct Counting {
    store: LocalStore,
    fetched: AtomicU64,
}

impl Objects for Counting {
    fn put(&self, p: &str, b: &[u8], m: PutMode) -> io::Result<()> {
        self.store.put(p, b, m)
    }
    fn get(&self, p: &str) -> io::Result<Bytes> {
        self.store.get(p)
    }
    fn get_range(&self, p: &str, r: Range<u64>) -> io::Result<Bytes> {
        let bytes = self.store.get_range(p, r)?;
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }
    fn head(&self, p: &str) -> io::Result<ObjectInfo> {
        self.store.head(p)
    }
    fn list(&self, p: &str) -> io::Result<Vec<ObjectInfo>> {
        self.store.list(p)
    }
    fn delete(&self, p: &str) -> io::Result<()> {
        self.store.delete(p)
    }
    fn rename(&self, a: &str, b: &str) -> io::Result<()> {
        self.store.rename(a, b)
    }
    fn settle(&self, p: &str) -> io::Result<()> {
        self.store.settle(p)
    }
    fn create(&self, p: &str) -> io::Result<Box<dyn ObjectWriter>> {
        self.store.create(p)
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    far: Arc<Counting>,
    cached: Cached,
}

fn content(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

fn open(dir: &Path, bytes: u64) -> Arc<BlockCache> {
    Arc::new(BlockCache::open(&dir.join("cache"), bytes).unwrap().expect("a cache of that size"))
}

fn fixture(bytes: u64) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("far")).unwrap();
    let far = Arc::new(Counting { store: LocalStore::new(dir.path().join("far")), fetched: AtomicU64::new(0) });
    let cached = Cached::new(far.clone(), open(dir.path(), bytes));
    Fixture { dir, far, cached }
}

impl Fixture {
    /// Bytes that `read` fetched.
    fn cost(&self, read: impl FnOnce(&Cached)) -> u64 {
        let before = self.far.fetched.load(Ordering::Relaxed);
        read(&self.cached);
        self.far.fetched.load(Ordering::Relaxed) - before
    }

    fn reopen(&mut self, bytes: u64) {
        self.cached = Cached::new(self.far.clone(), open(self.dir.path(), bytes));
    }
}

#[test]
fn any_range_reads_as_without_a_cache_and_is_fetched_once() {
    let f = fixture(64 << 20);
    let all = content(5 * BLOCK_BYTES as usize + 777);
    f.far.put(PART, &all, PutMode::Create).unwrap();
    let len = all.len() as u64;
    let mut x = 12345u64;
    let mut next = |n: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % n
    };
    let first = f.cost(|c| assert_eq!(c.get_range(PART, 70_000..70_001).unwrap(), all[70_000..70_001]));
    assert_eq!(first, BLOCK_BYTES, "one block for one byte");
    for _ in 0..200 {
        let ranges: Vec<Range<u64>> = (0..1 + next(3))
            .map(|_| {
                let start = next(len);
                start..start + 1 + next(2 * BLOCK_BYTES)
            })
            .collect();
        let got = f.cached.get_ranges(PART, &ranges).unwrap();
        for (r, bytes) in ranges.iter().zip(got) {
            assert_eq!(bytes, all[r.start as usize..r.end.min(len) as usize], "{r:?}");
        }
    }
    assert!(f.far.fetched.load(Ordering::Relaxed) <= len, "nothing is fetched twice");
    assert!(f.cached.get_range(PART, len..len + 5).is_err());
    assert_eq!(f.cost(|c| drop(c.get_range(PART, 0..len).unwrap())), 0);
    // What may change under its name is not kept.
    f.far.put("data/t/logs/_delta_log/x.json", b"1", PutMode::Create).unwrap();
    let log = |f: &Fixture| f.cost(|c| drop(c.get_range("data/t/logs/_delta_log/x.json", 0..1).unwrap()));
    assert_eq!((log(&f), log(&f)), (1, 1));
}

#[test]
fn what_is_written_is_held_and_what_is_deleted_is_not() {
    let f = fixture(64 << 20);
    let all = content(3 * BLOCK_BYTES as usize + 5);
    let mut w = f.cached.create(PART).unwrap();
    all.chunks(10_007).for_each(|c| w.write_all(c).unwrap());
    assert_eq!(w.finish().unwrap(), all.len() as u64);
    assert_eq!(f.cost(|c| assert_eq!(c.get_range(PART, 0..1 << 30).unwrap(), all)), 0);
    assert_eq!(f.cached.cache.stats.held_bytes.load(Ordering::Relaxed), 4 * BLOCK_BYTES);
    f.cached.delete(PART).unwrap();
    assert_eq!(f.cached.cache.stats.held_bytes.load(Ordering::Relaxed), 0);
    assert!(f.cached.get_range(PART, 0..5).is_err());
}

#[test]
fn the_least_recently_used_go_first_within_the_bound_also_after_a_restart() {
    let slots = 16;
    let mut f = fixture(slots * BLOCK_BYTES);
    let all = content(64 * BLOCK_BYTES as usize);
    f.far.put(PART, &all, PutMode::Create).unwrap();
    let read = |f: &Fixture, b: u64| {
        f.cost(|c| {
            let r = b * BLOCK_BYTES..(b + 1) * BLOCK_BYTES;
            assert_eq!(c.get_range(PART, r.clone()).unwrap(), all[r.start as usize..r.end as usize]);
        })
    };
    (0..16).for_each(|b| assert_eq!(read(&f, b), BLOCK_BYTES));
    assert_eq!(read(&f, 0), 0);
    f.cached.cache.save_order();
    f.reopen(slots * BLOCK_BYTES);
    assert_eq!(read(&f, 16), BLOCK_BYTES, "puts out block 1, the oldest");
    assert_eq!((read(&f, 0), read(&f, 2)), (0, 0));
    assert_eq!(read(&f, 1), BLOCK_BYTES);
    (0..64).for_each(|b| assert!(read(&f, b) <= BLOCK_BYTES));
    assert!(fs::metadata(f.dir.path().join("cache/blocks")).unwrap().len() <= slots * BLOCK_BYTES);
    // Without the order saved, as after a crash, and smaller than before.
    f.reopen((slots + 4) * BLOCK_BYTES);
    assert_eq!(read(&f, 63), 0);
}

#[test]
fn damaged_bytes_are_never_served() {
    let mut f = fixture(64 << 20);
    let all = content(20 * BLOCK_BYTES as usize);
    f.far.put(PART, &all, PutMode::Create).unwrap();
    f.cached.get_range(PART, 0..all.len() as u64).unwrap();
    let (blocks, index) = (f.dir.path().join("cache/blocks"), f.dir.path().join("cache/index"));
    for (file, every) in [(&blocks, 70_001), (&index, 97), (&blocks, 300_007)] {
        let mut bytes = fs::read(file).unwrap();
        (HEADER_BYTES as usize..bytes.len()).step_by(every).for_each(|i| bytes[i] ^= 0x41);
        fs::write(file, &bytes).unwrap();
        // With the cache open, and opened again.
        assert_eq!(f.cached.get_range(PART, 0..all.len() as u64).unwrap(), all);
        f.reopen(64 << 20);
        assert_eq!(f.cached.get_range(PART, 0..all.len() as u64).unwrap(), all);
    }
    fs::write(&blocks, b"short").unwrap();
    assert_eq!(f.cached.get_range(PART, 0..all.len() as u64).unwrap(), all);
    fs::write(&index, b"not an index of ours at all").unwrap();
    f.reopen(64 << 20);
    let cost = f.cost(|c| assert_eq!(c.get_range(PART, 0..all.len() as u64).unwrap(), all));
    assert_eq!(cost, all.len() as u64, "a foreign index holds nothing");
}

#[test]
fn a_cache_too_small_to_be_of_use_is_none() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), 64 << 20);
    assert!(BlockCache::open(&dir.path().join("cache"), 0).unwrap().is_none());
    assert!(!dir.path().join("cache").exists());
}
