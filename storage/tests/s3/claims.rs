//! Single claims about a store in a bucket, on the real server or in memory where that is enough.

use std::{io::Write as _, path::Path, sync::Arc, time::Duration};

use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory, path::Path as ObjectPath};
use storage::{
    OpenError, ScanError, ScanRequest, Store,
    model::{LogBatchBuilder, LogRow, SpanBatchBuilder, SpanRow, Table, TenantId, TimeRange},
    object::{
        Objects, PutMode, Remote,
        bridge::{Bridged, UPLOAD_PART_BYTES},
    },
};

use super::{
    proxy::{FAULTS, Fault, Proxy},
    remote,
    rows::{self, append, config, holds_exactly, open},
    weed,
};

fn in_memory(name: &str) -> Remote {
    let mut remote = Remote::new(name, Arc::new(InMemory::new()));
    remote.beat = Duration::from_millis(40);
    remote
}

fn refusal(result: Result<Store, OpenError>) -> String {
    match result {
        Ok(_) => panic!("it was opened"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_bucket_keeps_the_contract_of_objects() {
    let Some(weed) = weed::start_or_skip("s3") else { return };
    for store in [remote(weed.s3(), "contract", 2), in_memory("memory")] {
        let store = Bridged::start(&store).unwrap();
        store.put("a/one", b"12345", PutMode::Create).unwrap();
        assert_eq!(store.put("a/one", b"x", PutMode::Create).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(&store.get_range("a/one", 1..3).unwrap()[..], b"23");
        assert_eq!(&store.get_range("a/one", 3..99).unwrap()[..], b"45");
        assert!(store.get_range("a/one", 5..9).is_err());
        let several = store.get_ranges("a/one", &[0..1, 4..5, 1..2]).unwrap();
        assert_eq!(several.concat(), b"152");
        // Conditional replacement, for the lease.
        let (_, tag) = store.get_tagged("a/one").unwrap();
        let newer = store.replace("a/one", b"6", tag.clone()).unwrap();
        assert!(newer.is_some() && newer != tag);
        assert_eq!(store.replace("a/one", b"7", tag).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        assert_eq!(&store.get("a/one").unwrap()[..], b"6");
        // Small at once, large in parts; half written is not there.
        for size in [10, UPLOAD_PART_BYTES, 2 * UPLOAD_PART_BYTES + 12_345] {
            let content: Vec<u8> = (0..size).map(|i| (i / 7) as u8).collect();
            let mut w = store.create("a/big").unwrap();
            content.chunks(1_000_003).for_each(|c| w.write_all(c).unwrap());
            assert_eq!(w.finish().unwrap(), size as u64);
            assert_eq!(store.head("a/big").unwrap().size, size as u64);
            assert_eq!(store.get("a/big").unwrap(), content);
        }
        let mut w = store.create("a/half").unwrap();
        w.write_all(&vec![1; UPLOAD_PART_BYTES + 1]).unwrap();
        drop(w);
        assert_eq!(store.head("a/half").unwrap_err().kind(), std::io::ErrorKind::NotFound);
        store.rename("a/big", "quarantine/a/big.1").unwrap();
        let names: Vec<String> = store.list("").unwrap().into_iter().map(|i| i.path).collect();
        assert_eq!(names, ["a/one", "quarantine/a/big.1"]);
        store.delete("a/one").unwrap();
        assert!(store.list("a").unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_belongs_to_one_store() {
    let (a, b) = (in_memory("s3://bucket-a/x"), in_memory("s3://bucket-b/x"));
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("d"));
    let store = open(&config, &a).await.unwrap();
    append(&store, 0, 10, rows::now()).await.unwrap();
    store.abandon().await.unwrap();
    drop(store);
    let text = refusal(open(&config, &b).await);
    assert!(text.contains("belongs to s3://bucket-a/x, not to s3://bucket-b/x"), "{text}");
    let text = refusal(Store::open(config.clone()).await);
    assert!(text.contains("belongs to s3://bucket-a/x") && text.contains("--store s3://bucket-a/x"), "{text}");
    // The same name, but it is another bucket, or it was emptied.
    let text = refusal(open(&config, &in_memory("s3://bucket-a/x")).await);
    assert!(text.contains("was the bucket emptied or replaced?"), "{text}");
    let replaced = in_memory("s3://bucket-a/x");
    let other_dir = tempfile::tempdir().unwrap();
    open(&rows::config(other_dir.path()), &replaced).await.unwrap().close().await.unwrap();
    let text = refusal(open(&config, &replaced).await);
    assert!(text.contains("the bucket is not the one this directory's write-ahead log was made for"), "{text}");
    // A directory with a store of its own.
    let local = rows::config(&dir.path().join("local"));
    Store::open(local.clone()).await.unwrap().close().await.unwrap();
    let text = refusal(open(&local, &b).await);
    assert!(text.contains("belongs to a store of its own") && text.contains("another --data-dir"), "{text}");
    assert!(b.store.list(None).collect::<Vec<_>>().await.is_empty(), "nothing was written to the wrong bucket");
    // All that was refused changed nothing.
    let store = open(&config, &a).await.unwrap();
    holds_exactly(&store, 10).await;
}

use futures::StreamExt as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_of_somebody_else_or_of_a_later_release_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = in_memory("s3://foreign");
    foreign.store.put(&ObjectPath::from("thesis.tex"), "x".into()).await.unwrap();
    let text = refusal(open(&config(&dir.path().join("a")), &foreign).await);
    assert!(text.contains("it holds `thesis.tex` and no `sightline.json`; use an empty prefix"), "{text}");
    let newer = in_memory("s3://newer");
    let identity = ObjectPath::from("sightline.json");
    newer.store.put(&identity, r#"{"format":2,"id":"x"}"#.into()).await.unwrap();
    let text = refusal(open(&config(&dir.path().join("b")), &newer).await);
    assert!(text.contains("it has format version 2, this program knows versions up to 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_writer_is_refused_and_takes_over_what_is_left_behind() {
    let bucket = in_memory("s3://shared");
    let dirs = tempfile::tempdir().unwrap();
    let at = |name: &str| config(&dirs.path().join(name));
    let mut first = at("first");
    first.background = true; // renews its lease
    let store = open(&first, &bucket).await.unwrap();
    append(&store, 0, 10, rows::now()).await.unwrap();
    store.flush().await.unwrap();
    let text = refusal(open(&at("second"), &bucket).await);
    assert!(text.contains("first of host") && text.contains("writes to it; stop that one"), "{text}");
    // A clean stop gives it free at once.
    store.close().await.unwrap();
    drop(store);
    let store = open(&at("second"), &bucket).await.unwrap();
    append(&store, 10, 20, rows::now()).await.unwrap();
    store.flush().await.unwrap();
    holds_exactly(&store, 20).await;
    // One that shows no life is taken over, and finds out when it wakes.
    let third = open(&at("third"), &bucket).await.unwrap();
    holds_exactly(&third, 20).await;
    append(&store, 20, 30, rows::now()).await.unwrap();
    append(&third, 30, 40, rows::now()).await.unwrap();
    third.flush().await.unwrap();
    third.close().await.unwrap();
    // Rows that the second one still had in its log come with it.
    store.abandon().await.unwrap();
    drop(store);
    let mut again = at("second");
    again.background = true;
    let store = open(&again, &bucket).await.unwrap();
    store.flush().await.unwrap();
    holds_exactly(&store, 40).await;
    drop(store);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_slept_through_its_takeover_writes_no_more() {
    let bucket = in_memory("s3://shared");
    let dirs = tempfile::tempdir().unwrap();
    let slow = Remote { beat: Duration::from_secs(3), ..bucket.clone() };
    let mut sleeper = config(&dirs.path().join("sleeper"));
    sleeper.background = true;
    let first = open(&sleeper, &slow).await.unwrap();
    append(&first, 0, 5, rows::now()).await.unwrap();
    let second = open(&config(&dirs.path().join("second")), &bucket).await.unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    let refused = loop {
        match append(&first, 5, 6, rows::now()).await {
            Err(e) => break e.to_string(),
            Ok(()) => assert!(std::time::Instant::now() < end, "the first owner goes on"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(refused.contains("second of host") && refused.contains("has taken it over"), "{refused}");
    assert!(first.flush().await.is_err());
    append(&second, 100, 101, rows::now()).await.unwrap();
    second.flush().await.unwrap();
    assert_eq!(rows::found(&second).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_writes_are_kept_reads_say_so_and_nothing_is_lost() {
    let Some(mut weed) = weed::start_or_skip("s3") else { return };
    let proxy = Proxy::start(weed.s3(), 1);
    let bucket = remote(proxy.address, "away", 1);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.background = true;
    config.flush_age = Duration::from_millis(100);
    let store = open(&config, &bucket).await.unwrap();
    append(&store, 0, 100, rows::now()).await.unwrap();
    store.flush().await.unwrap();
    proxy.cut(true);
    weed.kill();
    append(&store, 100, 200, rows::now()).await.unwrap();
    let failed = |s: &Store| s.metrics().flush_failures.load(std::sync::atomic::Ordering::Relaxed);
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while failed(&store) < 2 {
        assert!(std::time::Instant::now() < end, "no flush was tried");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    append(&store, 200, 300, rows::now()).await.unwrap();
    // What is in the cache is read; what is not, is an error that names the store.
    holds_exactly(&store, 300).await;
    std::fs::write(dir.path().join("cache/blocks"), b"").unwrap();
    store.abandon().await.unwrap();
    drop(store);
    let text = refusal(open(&config, &bucket).await);
    assert!(text.contains("cannot use the store s3://sightline/away: it does not answer"), "{text}");
    weed.restart();
    proxy.cut(false);
    let store = open(&config, &bucket).await.unwrap();
    holds_exactly(&store, 300).await;
    store.flush().await.unwrap();
    proxy.cut(true);
    let end = std::time::Instant::now() + Duration::from_secs(30);
    clear(&store, dir.path());
    let error = loop {
        match rows::found(&store).await {
            Err(e) => break e,
            Ok(_) => assert!(std::time::Instant::now() < end, "read without a store"),
        }
    };
    assert!(matches!(&error, ScanError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("store s3://sightline/away does not answer"), "{error}");
    proxy.cut(false);
    holds_exactly(&store, 300).await;
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kind_of_fault_loses_repeats_or_alters_a_row() {
    let Some(weed) = weed::start_or_skip("s3") else { return };
    let mut all = tokio::task::JoinSet::new();
    for fault in FAULTS {
        all.spawn(under(fault, Proxy::start(weed.s3(), 40)));
    }
    all.join_all().await;
}

/// A store whose requests meet with one kind of fault, three in ten.
async fn under(fault: Fault, proxy: Proxy) {
    let bucket = remote(proxy.address, &format!("fault-{fault:?}"), 1);
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("data"));
    let mut store = open(&config, &bucket).await.unwrap();
    proxy.only(fault);
    proxy.faulty(300);
    let mut rows = 0;
    for round in 0..6 {
        append(&store, rows, rows + 100, rows::now()).await.unwrap();
        rows += 100;
        // Each of these may fail, and is tried again by the next.
        let _ = store.flush().await;
        if round % 2 == 1 {
            let _ = store.compact().await;
            store.abandon().await.unwrap();
            drop(store);
            let _ = std::fs::remove_dir_all(config.dir.join("cache"));
            store = loop {
                if let Ok(store) = open(&config, &bucket).await {
                    break store;
                }
            };
        }
        // An answer is right or an error.
        match rows::found(&store).await {
            Ok(found) => assert_eq!(found, (0..rows).map(|n| (n, 1)).collect(), "{fault:?}"),
            Err(e) => assert!(matches!(e, ScanError::Unavailable { .. }), "{fault:?}: {e}"),
        }
    }
    assert!(proxy.count(fault) > 5, "{fault:?}: {}", proxy.told());
    proxy.faulty(0);
    store.flush().await.unwrap();
    holds_exactly(&store, rows).await;
    store.close().await.unwrap();
    drop(store);
    let store = open(&rows::config(&dir.path().join("fresh")), &bucket).await.unwrap();
    holds_exactly(&store, rows).await;
    store.close().await.unwrap();
}

/// Rows of `table` that a tenant has.
async fn count(store: &Store, tenant: &TenantId, table: Table) -> usize {
    let batches = store.scan(ScanRequest::new(tenant.clone(), table, TimeRange::ALL)).await.unwrap();
    batches.collect().await.unwrap().iter().map(|b| b.num_rows()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_table_is_taken_while_the_store_is_away_and_made_when_it_is_back() {
    let Some(weed) = weed::start_or_skip("s3") else { return };
    let proxy = Proxy::start(weed.s3(), 2);
    let bucket = remote(proxy.address, "newtables", 1);
    let dirs = tempfile::tempdir().unwrap();
    let config = config(&dirs.path().join("a"));
    let store = open(&config, &bucket).await.unwrap();
    let tenant = TenantId::parse("late").unwrap();
    let push = async |store: &Store, n: u64| {
        let (mut logs, mut spans) = (LogBatchBuilder::new(), SpanBatchBuilder::new());
        let (body, trace, span) = (format!("row {n}"), u128::from(n).to_be_bytes(), n.to_be_bytes());
        logs.push(&LogRow { ts: rows::now(), stream_labels: "{\"a\":\"b\"}", body: &body, ..LogRow::default() });
        spans.push(&SpanRow { trace_id: &trace, span_id: &span, ts: rows::now(), ..SpanRow::default() });
        let rows = vec![(Table::Logs, logs.finish()), (Table::Spans, spans.finish())];
        store.append(storage::Append { tenant: tenant.clone(), rows, sources: vec![], batch_id: None }).await
    };
    let hold = async |store: &Store, n: usize| {
        for table in [Table::Logs, Table::Spans] {
            assert_eq!(count(store, &tenant, table).await, n, "{table:?}");
        }
    };
    proxy.cut(true);
    for n in 0..10 {
        push(&store, n).await.unwrap();
    }
    hold(&store, 10).await;
    assert_eq!(store.tenants(), std::slice::from_ref(&tenant));
    assert!(store.flush().await.is_err() && store.compact().await.is_err());
    store.checkpoint().await.unwrap();
    hold(&store, 10).await;
    // Killed meanwhile, and the copy that a backup makes of what is in no bucket yet.
    store.backup(dirs.path().join("copy")).await.unwrap();
    store.abandon().await.unwrap();
    drop(store);
    storage::backup::restore(&dirs.path().join("copy"), &dirs.path().join("restored")).await.unwrap();
    let copy = Store::open(rows::config(&dirs.path().join("restored"))).await.unwrap();
    hold(&copy, 10).await;
    copy.close().await.unwrap();
    proxy.cut(false);
    let store = open(&config, &bucket).await.unwrap();
    hold(&store, 10).await;
    // The other order: back while it runs.
    let second = TenantId::parse("later").unwrap();
    proxy.cut(true);
    let mut more = LogBatchBuilder::new();
    more.push(&LogRow { ts: rows::now(), stream_labels: "{}", body: "one", ..LogRow::default() });
    let rows = vec![(Table::Logs, more.finish())];
    store.append(storage::Append { tenant: second.clone(), rows, sources: vec![], batch_id: None }).await.unwrap();
    proxy.cut(false);
    push(&store, 10).await.unwrap();
    store.flush().await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let store = open(&rows::config(&dirs.path().join("b")), &bucket).await.unwrap();
    hold(&store, 11).await;
    assert_eq!(count(&store, &second, Table::Logs).await, 1);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_nothing_can_be_flushed_rows_leave_memory_for_the_log_and_writes_end_with_it() {
    let Some(weed) = weed::start_or_skip("s3") else { return };
    let proxy = Proxy::start(weed.s3(), 3);
    let bucket = remote(proxy.address, "spill", 0);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.background = true;
    config.memory_bytes_max = 4 << 20;
    config.flush_bytes = 256 << 10;
    config.wal_segment_bytes = 256 << 10;
    config.wal_bytes_full = 2 << 20;
    let store = open(&config, &bucket).await.unwrap();
    proxy.cut(true);
    let base = rows::now();
    let mut rows = 0;
    let refused = loop {
        match append(&store, rows, rows + 2_000, base).await {
            Ok(()) => rows += 2_000,
            Err(e) => break e,
        }
        assert!(rows < 10_000_000, "no end");
    };
    let metrics = store.metrics();
    let get = |a: &std::sync::atomic::AtomicU64| a.load(std::sync::atomic::Ordering::Relaxed);
    assert!(matches!(refused, storage::AppendError::Overloaded { .. }), "{refused}");
    assert!(
        get(&metrics.wal_bytes) > config.wal_bytes_full,
        "it is the log that was full: {}",
        get(&metrics.wal_bytes)
    );
    assert!(get(&metrics.head_spilled) > rows / 2, "{} of {rows} rows", get(&metrics.head_spilled));
    assert!(get(&metrics.head_bytes) <= 2 << 20);
    holds_exactly(&store, rows).await;
    let copies = tempfile::tempdir().unwrap();
    let (copy, restored) = (copies.path().join("copy"), copies.path().join("restored"));
    store.backup(copy.clone()).await.unwrap();
    storage::backup::restore(&copy, &restored).await.unwrap();
    let copy = Store::open(rows::config(&restored)).await.unwrap();
    holds_exactly(&copy, rows).await;
    copy.close().await.unwrap();
    proxy.cut(false);
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while append(&store, rows, rows + 1, base).await.is_err() {
        assert!(std::time::Instant::now() < end, "writes are not taken again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    store.flush().await.unwrap();
    holds_exactly(&store, rows + 1).await;
    store.close().await.unwrap();
}

/// Makes every held block wrong.
fn clear(_store: &Store, dir: &Path) {
    std::fs::write(dir.join("cache/blocks"), b"").unwrap();
}
