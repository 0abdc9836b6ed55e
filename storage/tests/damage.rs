//! What a reader and a merge make of rot, of a disk that refuses to read, and of one that is full.

#[path = "faults/rows.rs"]
#[allow(dead_code, reason = "shared with the simulation")]
mod rows;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arrow::array::AsArray as _;
use storage::{
    Append, AppendError, Environment, ScanError, ScanRequest, Store, StoreConfig,
    model::{Table, TenantId, TimeRange, Timestamp},
    vfs::{
        Vfs as _,
        sim::{Faults, SimClock, SimVfs},
    },
};

async fn open(vfs: &SimVfs, background: bool) -> (Store, Arc<SimClock>) {
    let clock = Arc::new(SimClock::new(Timestamp(rows::BASE_MS * 1_000_000)));
    let env =
        Environment { vfs: Arc::new(vfs.clone()), clock: clock.clone(), lock_dir: false, ..Environment::default() };
    let mut config = StoreConfig::new("/store");
    config.background = background;
    (Store::open_on(config, env).await.unwrap(), clock)
}

async fn append(store: &Store, record: u32) -> Result<(), AppendError> {
    let append = Append {
        tenant: TenantId::default_tenant(),
        rows: rows::build(Table::Logs, record, 1),
        sources: vec![],
        batch_id: None,
    };
    store.append(append).await.map(|_| ())
}

/// Log bodies, and how many parts the scan left out.
async fn bodies(store: &Store) -> Result<(BTreeSet<String>, u64), ScanError> {
    let request = ScanRequest::new(TenantId::default_tenant(), Table::Logs, TimeRange::ALL).columns(&["body"]);
    let stream = store.scan(request).await?;
    let stats = stream.stats().clone();
    let batches = stream.collect().await?;
    let found = batches.iter().flat_map(|b| b.column(0).as_string::<i32>().iter().flatten().map(str::to_owned));
    Ok((found.collect(), stats.damaged.load(Ordering::Relaxed)))
}

fn parts(vfs: &SimVfs) -> Vec<PathBuf> {
    let table = Path::new("/store/data/default/logs");
    let days = vfs.list_dir(table).unwrap().into_iter().filter(|d| d.starts_with("day=")).map(|d| table.join(d));
    days.flat_map(|d| vfs.list_dir(&d).unwrap().into_iter().map(move |f| d.join(f))).collect()
}

/// Records of one hour, a part each.
async fn six_parts(store: &Store) {
    for record in [0, 1, 2, 6, 7, 8] {
        append(store, record).await.unwrap();
        store.flush().await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_part_is_counted_by_scans_and_set_aside_by_a_merge_which_goes_on() {
    let vfs = SimVfs::new(1);
    let (store, _clock) = open(&vfs, false).await;
    six_parts(&store).await;
    let (all, damaged) = bodies(&store).await.unwrap();
    assert_eq!((all.len(), damaged), (6, 0));
    let files = parts(&vfs);
    assert_eq!(files.len(), 6);
    vfs.damage(&files[2], |bytes| bytes[50..300].iter_mut().for_each(|b| *b ^= 0x5a)).unwrap();
    let (left, damaged) = bodies(&store).await.unwrap();
    assert_eq!((left.len(), damaged), (5, 1));
    store.compact().await.unwrap();
    assert_eq!(bodies(&store).await.unwrap(), (left.clone(), 0));
    assert_eq!(store.parts_by_level(), [(2, 1)].into(), "the others were merged");
    assert!(vfs.list_dir(Path::new("/store/quarantine/data/default/logs")).is_ok(), "the file was kept");
    assert!(store.metrics().quarantined_parts.load(Ordering::Relaxed) >= 1);
    store.close().await.unwrap();
    let (store, _clock) = open(&vfs, false).await;
    assert_eq!(bodies(&store).await.unwrap(), (left, 0));
}

#[tokio::test]
async fn a_disk_that_refuses_to_read_fails_the_scan_and_is_no_damage() {
    let vfs = SimVfs::new(2);
    let (store, _clock) = open(&vfs, false).await;
    six_parts(&store).await;
    append(&store, 12).await.unwrap();
    store.abandon().await.unwrap();
    let (store, _clock) = open(&vfs, false).await;
    vfs.set_faults(Faults { read: 1000, ..Faults::default() });
    let refused = bodies(&store).await;
    assert!(matches!(refused, Err(ScanError::Internal(_))), "{refused:?}");
    assert!(store.compact().await.is_err());
    assert!(store.flush().await.is_err(), "rows that cannot be read from the log stay there");
    vfs.set_faults(Faults::default());
    let (all, damaged) = bodies(&store).await.unwrap();
    assert_eq!((all.len(), damaged), (7, 0));
    store.flush().await.unwrap();
    store.compact().await.unwrap();
    assert_eq!(bodies(&store).await.unwrap(), (all, 0));
    assert_eq!(store.metrics().quarantined_parts.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_nearly_full_disk_refuses_writes_and_takes_them_again_by_itself() {
    let vfs = SimVfs::new(3);
    let (store, clock) = open(&vfs, true).await;
    append(&store, 0).await.unwrap();
    let used = vfs.space(Path::new("/store")).unwrap().used;
    vfs.set_faults(Faults { space: Some(used + used / 50), ..Faults::default() });
    // Appends until one is refused (or, below, taken), while the clock runs.
    let mut record = 1;
    let mut until = async |refused: bool| {
        for _ in 0..500 {
            clock.advance(Duration::from_millis(300));
            tokio::time::sleep(Duration::from_millis(10)).await;
            record += 1;
            match append(&store, record).await {
                Err(AppendError::DiskFull { .. }) if refused => return,
                Ok(()) if !refused => return,
                Ok(()) | Err(AppendError::DiskFull { .. }) => {}
                Err(e) => panic!("{e}"),
            }
        }
        panic!("refused never became {refused}");
    };
    until(true).await;
    vfs.set_faults(Faults::default());
    until(false).await;
    let (found, damaged) = bodies(&store).await.unwrap();
    assert!(found.len() >= 2 && damaged == 0);
    store.close().await.unwrap();
}
