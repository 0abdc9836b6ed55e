use std::{fs, io::Write};

use object_store::{ObjectStore, PutPayload, path::Path as StorePath};

use super::*;
use crate::object::{AsyncLocal, bridge::Bridged};

fn fixture() -> (tempfile::TempDir, LocalStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::new(dir.path());
    (dir, store)
}

fn temporary_files(dir: &tempfile::TempDir) -> usize {
    fs::read_dir(dir.path().join(TEMPORARY)).map_or(0, Iterator::count)
}

/// The same claims for each implementation.
fn behaves(store: &dyn Objects) {
    store.put("a/b/one", b"12345", PutMode::Create).unwrap();
    let again = store.put("a/b/one", b"other", PutMode::Create).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(&store.get("a/b/one").unwrap()[..], b"12345");
    store.put("a/b/one", b"6789", PutMode::Overwrite).unwrap();
    assert_eq!(&store.get_range("a/b/one", 1..3).unwrap()[..], b"78");
    assert_eq!(&store.get_range("a/b/one", 2..99).unwrap()[..], b"89");
    assert!(store.get_range("a/b/one", 4..9).is_err());
    assert_eq!(store.head("a/b/one").unwrap().size, 4);

    let mut w = store.create("a/two").unwrap();
    w.write_all(&[1; 300_000]).unwrap();
    assert_eq!(w.written(), 300_000);
    assert_eq!(store.head("a/two").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(w.finish().unwrap(), 300_000);
    let mut dropped = store.create("a/three").unwrap();
    dropped.write_all(b"x").unwrap();
    drop(dropped);
    let names = |p| store.list(p).unwrap().into_iter().map(|i| (i.path, i.size)).collect::<Vec<_>>();
    assert_eq!(names("a"), [("a/b/one".to_owned(), 4), ("a/two".to_owned(), 300_000)]);
    assert_eq!(names("none"), []);

    store.rename("a/two", "c/d/two").unwrap();
    store.settle("c/d/two").unwrap();
    store.delete("a/b/one").unwrap();
    assert_eq!(names("a"), []);
    for absent in [store.get("a/two").map(|_| ()), store.head("a/two").map(|_| ())] {
        assert_eq!(absent.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
    for bad in ["../x", "a//b", "/a", "a/../../b", "a/\0", "."] {
        assert!(store.put(bad, b"", PutMode::Create).is_err(), "{bad:?}");
    }
}

#[test]
fn a_folder_is_a_store() {
    let (dir, store) = fixture();
    behaves(&store);
    assert_eq!(temporary_files(&dir), 0);
}

#[test]
fn an_async_store_serves_blocking_callers() {
    let (dir, store) = fixture();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    behaves(&Bridged::new(Arc::new(AsyncLocal::from(store)), runtime.handle().clone()));
    assert_eq!(temporary_files(&dir), 0);
}

#[test]
fn listing_with_a_delimiter_and_streamed_reads_follow_the_async_contract() {
    let (_dir, store) = fixture();
    for p in ["t/a", "t/x/1", "t/x/2", "t/y/z/3"] {
        store.put(p, p.as_bytes(), PutMode::Create).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = AsyncLocal::from(store);
    runtime.block_on(async {
        use object_store::ObjectStoreExt;
        let found = store.list_with_delimiter(Some(&StorePath::from("t"))).await.unwrap();
        assert_eq!(found.common_prefixes, [StorePath::from("t/x"), StorePath::from("t/y")]);
        assert_eq!(found.objects.len(), 1);
        let big = StorePath::from("big");
        store.put(&big, PutPayload::from(vec![5; 3_000_000])).await.unwrap();
        assert_eq!(store.get(&big).await.unwrap().bytes().await.unwrap().len(), 3_000_000);
        assert!(store.copy_if_not_exists(&big, &StorePath::from("t/a")).await.is_err());
        assert!(store.rename_if_not_exists(&big, &StorePath::from("t/a")).await.is_err());
        store.rename_if_not_exists(&big, &StorePath::from("t/b")).await.unwrap();
    });
}

#[test]
fn one_of_many_racing_creators_wins() {
    let (dir, _) = fixture();
    for round in 0..50 {
        let wins = AtomicU64::new(0);
        std::thread::scope(|s| {
            for w in 0..4u8 {
                let (wins, dir) = (&wins, &dir);
                s.spawn(move || {
                    let store = LocalStore::new(dir.path());
                    if store.put(&format!("log/{round}"), &[w; 100], PutMode::Create).is_ok() {
                        wins.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(wins.into_inner(), 1);
    }
}

#[test]
fn what_a_crash_leaves_is_cleaned() {
    let (dir, store) = fixture();
    let mut w = store.create("a").unwrap();
    w.write_all(b"x").unwrap();
    std::mem::forget(w);
    assert_eq!(temporary_files(&dir), 1);
    assert_eq!(store.clean_temporary().unwrap(), 1);
    assert!(store.list("").unwrap().is_empty());
}
