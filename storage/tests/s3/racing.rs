//! Eight committers to one table's log.

use std::{collections::BTreeSet, sync::Arc};

use storage::{
    catalog::{Bucket, Commit, NewPart, Operation, TableCatalog, TableOptions, part_path},
    model::{Table, Timestamp},
    object::{Objects, PutMode, bridge::Bridged},
    part::disk_schema,
};

use super::{proxy::Proxy, remote, weed};

const COMMITTERS: u64 = 8;
const COMMITS: i64 = 6;

#[test]
fn of_eight_racing_committers_one_wins_each_version_whatever_gets_lost() {
    let Some(weed) = weed::start_or_skip("s3") else { return };
    for per_mille in [0, 60] {
        let proxy = Proxy::start(weed.s3(), 3);
        let prefix = format!("race{per_mille}");
        let options = || TableOptions {
            exclusive: false,
            ..TableOptions::new(Table::Logs, "data/default/logs", disk_schema(Table::Logs))
        };
        let clean = Arc::new(Bridged::start(&remote(weed.s3(), &prefix, 3)).unwrap());
        TableCatalog::open(clean.clone(), options(), Timestamp(1)).unwrap();
        proxy.faulty(per_mille);
        let won: Vec<i64> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..COMMITTERS)
                .map(|writer| {
                    let store = remote(proxy.address, &prefix, 3);
                    scope.spawn(move || committer(writer, Arc::new(Bridged::start(&store).unwrap()), options()))
                })
                .collect();
            all.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        proxy.faulty(0);
        let distinct: BTreeSet<i64> = won.iter().copied().collect();
        assert_eq!((won.len(), distinct.len()), (48, 48), "each version has one winner");
        let (catalog, report) = TableCatalog::open(clean, options(), Timestamp(1)).unwrap();
        assert!(report.log.is_empty(), "{report:?}");
        assert_eq!(catalog.version(), 48, "every commit once; {}", proxy.told());
        assert_eq!(catalog.live().len(), 48);
        for writer in 0..COMMITTERS {
            assert_eq!(catalog.txn_version(&format!("w{writer}")), Some(COMMITS));
        }
        println!("racing: {}", proxy.told());
    }
}

/// Commits until all of its commits are in; the versions it got.
fn committer(writer: u64, store: Arc<Bridged>, options: TableOptions) -> Vec<i64> {
    let open = || {
        for _ in 0..50 {
            if let Ok((catalog, _)) = TableCatalog::open(store.clone(), options.clone(), Timestamp(1)) {
                return catalog;
            }
        }
        panic!("cannot open the table")
    };
    let mut catalog = open();
    let mut won = Vec::new();
    for n in 1..=COMMITS {
        let bucket = Bucket::Hour(1);
        let path = part_path(bucket, 0);
        // Its content does not matter here.
        while store.put(&catalog.file_of(&path), b"part", PutMode::Overwrite).is_err() {}
        for tries in 0.. {
            assert!(tries < 50, "writer {writer} never gets through");
            let ts = Timestamp(1);
            let part = NewPart {
                path: path.clone(),
                bucket,
                size: 4,
                rows: 1,
                min_ts: ts,
                max_ts: ts,
                level: 0,
                order: None,
                tags: vec![],
            };
            let commit = Commit {
                adds: vec![part],
                removes: vec![],
                txn: Some((format!("w{writer}"), n)),
                operation: Operation::Flush,
            };
            match catalog.commit(commit, ts) {
                Ok(done) => {
                    won.push(done.version);
                    break;
                }
                Err(e) if e.is_uncertain() => {
                    catalog = open();
                    if catalog.txn_version(&format!("w{writer}")) == Some(n) {
                        let added = catalog.live().iter().find(|p| p.path == path).map(|p| p.order);
                        won.push(added.expect("its part came with it"));
                        break;
                    }
                }
                Err(storage::catalog::CatalogError::AlreadyCommitted { .. }) => {
                    // The one before came into effect after all.
                    catalog = open();
                    let added = catalog.live().iter().find(|p| p.path == path).map(|p| p.order);
                    won.push(added.expect("its part came with it"));
                    break;
                }
                Err(_) => {}
            }
        }
    }
    won
}
