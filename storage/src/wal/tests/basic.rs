use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::{
    vfs::sim::{Faults, Op},
    wal::Kind,
};

#[test]
fn what_was_acknowledged_comes_back_in_order_with_the_same_rows() {
    let vfs = SimVfs::new(1);
    let (none, wal) = open(&vfs);
    assert!(none.is_empty());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut sent = Vec::new();
    for i in 0..50 {
        let b = logs(1 + i * 40, i as i64 * 1000, "hello");
        let shown = seen.clone();
        let committed = wait(wal.append(Entry {
            tenant: TenantId::parse("t1").unwrap(),
            sections: vec![
                batch(&b),
                Section::Position { key: "file".into(), position: i as u64 },
                Section::BatchId([i as u8; 16]),
            ],
            publish: Box::new(move |c| shown.lock().push(c.seq)),
        }))
        .unwrap();
        assert_eq!(wal.read_batch(&committed.locations[0]).unwrap(), b);
        assert_eq!(seen.lock().last(), Some(&committed.seq));
        sent.push((committed.seq, b));
    }
    drop(wal);
    let (records, recovered) = recover(&vfs, options()).unwrap();
    assert_eq!(records.len(), sent.len());
    for (i, (r, (seq, b))) in records.iter().zip(&sent).enumerate() {
        assert_eq!((r.seq, r.kind, r.tenant.as_str()), (*seq, Kind::Append, "t1"));
        assert_eq!(r.positions, [("file".to_owned(), i as u64)]);
        assert_eq!(r.batch_ids, [[i as u8; 16]]);
        let meta = r.batches[0].meta;
        assert_eq!((meta.min_ts, meta.max_ts), (i as i64 * 1000, i as i64 * 1000 + b.num_rows() as i64 - 1));
        assert_eq!(r.batches[0].read().unwrap(), *b);
    }
    assert_eq!(recovered.report.damage, []);
    assert!(recovered.report.segments > 1);
}

#[test]
fn many_clients_share_a_sync() {
    let vfs = SimVfs::new(2);
    let (_, wal) = open(&vfs);
    let section = batch(&logs(3, 0, "x"));
    wait(futures::future::join_all((0..500).map(|_| wal.append(entry(vec![section.clone()])))))
        .into_iter()
        .for_each(|r| drop(r.unwrap()));
    let stats = wal.stats();
    assert_eq!(stats.records, 500);
    assert!(stats.groups <= 500 && stats.syncs > 0 && stats.failed_groups == 0, "{stats:?}");
    wait(wal.close()).unwrap();
    assert!(matches!(wait(wal.append(entry(vec![]))), Err(WalError::Closed)));
}

#[test]
fn a_torn_tail_is_cut_and_is_not_damage() {
    let vfs = SimVfs::new(3);
    let (_, wal) = open(&vfs);
    for i in 0..5 {
        wait(wal.append(entry(vec![batch(&logs(2, i, "x"))]))).unwrap();
    }
    drop(wal);
    let path = Path::new("/wal/00000001.seg");
    let mut whole = 0;
    vfs.damage(path, |b| {
        whole = b.len();
        b.truncate(whole - 3)
    })
    .unwrap();
    let (records, recovered) = recover(&vfs, options()).unwrap();
    assert_eq!((records.len(), recovered.report.damage.len()), (4, 0));
    assert!(recovered.report.torn_tail_bytes > 0);
    // Gone for good: the next start sees a clean log.
    let (records, recovered) = recover(&vfs, options()).unwrap();
    assert_eq!((records.len(), recovered.report.torn_tail_bytes), (4, 0));
    // And a new record takes a new number in a new segment.
    let wal = recovered.start(100, no_carry()).unwrap();
    assert_eq!(wait(wal.append(entry(vec![]))).unwrap().seq, 100);
}

#[test]
fn damage_in_the_middle_is_quarantined_once_and_the_rest_is_served() {
    let vfs = SimVfs::new(4);
    let (_, wal) = open(&vfs);
    let at: Vec<u64> =
        (0..9).map(|i| wait(wal.append(entry(vec![batch(&logs(2, i, "x"))]))).unwrap().locations[0].offset).collect();
    drop(wal);
    vfs.damage(Path::new("/wal/00000001.seg"), |b| b[at[4] as usize] ^= 1).unwrap();
    for _ in 0..2 {
        let (records, recovered) = recover(&vfs, options()).unwrap();
        let seqs: Vec<u64> = records.iter().map(|r| r.seq).collect();
        assert_eq!(seqs, [1, 2, 3, 4, 6, 7, 8, 9]);
        let [damage] = &recovered.report.damage[..] else { panic!("{:?}", recovered.report) };
        let copy = damage.quarantined.as_ref().unwrap();
        assert_eq!(vfs.metadata(copy).unwrap().len, damage.bytes.end - damage.bytes.start);
        assert_eq!(vfs.list_dir(Path::new("/quarantine")).unwrap().len(), 2);
    }
}

#[test]
fn one_damaged_header_copy_is_harmless_and_two_quarantine_the_segment() {
    let vfs = SimVfs::new(5);
    let (_, wal) = open(&vfs);
    wait(wal.append(entry(vec![]))).unwrap();
    wait(wal.rotate()).unwrap();
    wait(wal.append(entry(vec![]))).unwrap();
    drop(wal);
    let path = Path::new("/wal/00000001.seg");
    vfs.damage(path, |b| b[3] ^= 1).unwrap();
    assert_eq!(recover(&vfs, options()).unwrap().0.len(), 2);
    vfs.damage(path, |b| b[515] ^= 1).unwrap();
    let (records, recovered) = recover(&vfs, options()).unwrap();
    assert_eq!((records.len(), recovered.report.damaged_places), (1, 1));
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_touched() {
    let vfs = SimVfs::new(6);
    let (_, wal) = open(&vfs);
    wait(wal.append(entry(vec![]))).unwrap();
    drop(wal);
    let path = Path::new("/wal/00000001.seg");
    vfs.damage(path, |b| {
        for at in [0, 512] {
            b[at + 8] = 3;
            let crc = crc32c::crc32c(&b[at..at + 56]);
            b[at + 56..at + 60].copy_from_slice(&crc.to_le_bytes());
        }
    })
    .unwrap();
    assert!(matches!(recover(&vfs, options()), Err(WalError::NewerVersion { found: 3, known: 2, .. })));
}

#[test]
fn a_record_quoted_in_a_body_is_not_found_when_searching_behind_damage() {
    let position = || entry(vec![Section::Position { key: "a".into(), position: 1 }]);
    let other = SimVfs::new(7);
    let wal = recover(&other, options()).unwrap().1.start(50, no_carry()).unwrap();
    wait(wal.append(position())).unwrap();
    drop(wal);
    let path = Path::new("/wal/00000001.seg");
    let record = other.read(path, 1 << 20).unwrap().split_off(1024);
    let vfs = SimVfs::new(8);
    let (_, wal) = open(&vfs);
    wait(wal.append(position())).unwrap();
    wait(wal.append(position())).unwrap();
    drop(wal);
    vfs.damage(path, |b| {
        b[1024 + record.len()] ^= 1;
        b.extend_from_slice(&record);
    })
    .unwrap();
    let (records, _) = recover(&vfs, options()).unwrap();
    assert_eq!(records.iter().map(|r| r.seq).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_full_disk_refuses_and_writes_resume_by_themselves() {
    let vfs = SimVfs::new(8);
    let (_, wal) = open(&vfs);
    wait(wal.append(entry(vec![]))).unwrap();
    let used = vfs.space(Path::new("/")).unwrap().used;
    vfs.set_faults(Faults { space: Some(used + 100), ..Faults::default() });
    for _ in 0..3 {
        assert!(matches!(wait(wal.append(entry(vec![batch(&logs(50, 0, "y"))]))), Err(WalError::NoSpace { .. })));
    }
    vfs.set_faults(Faults::default());
    wait(wal.append(entry(vec![Section::BatchId([9; 16])]))).unwrap();
    drop(wal);
    let (records, recovered) = recover(&vfs, options()).unwrap();
    assert_eq!((records.len(), recovered.report.damaged_places), (2, 0));
    assert_eq!(records[1].batch_ids, [[9; 16]]);
}

#[test]
fn a_record_whose_sync_failed_is_never_found_once_a_later_one_is_acknowledged() {
    for cut_fails in [false, true] {
        let vfs = SimVfs::new(9);
        let (_, wal) = open(&vfs);
        let id = |n| entry(vec![Section::BatchId([n; 16])]);
        wait(wal.append(id(1))).unwrap();
        vfs.fail_next(Op::Sync, 1);
        if cut_fails {
            vfs.fail_next(Op::SetLen, 1);
        }
        assert!(wait(wal.append(id(2))).is_err());
        wait(wal.append(id(3))).unwrap();
        drop(wal);
        let (records, recovered) = recover(&vfs, options()).unwrap();
        let ids: Vec<u8> = records.iter().map(|r| r.batch_ids[0][0]).collect();
        assert_eq!((ids, recovered.report.damaged_places), (vec![1, 3], 0));
    }
}

#[test]
fn released_segments_go_their_held_batches_stay_and_the_newest_is_kept() {
    let vfs = SimVfs::new(10);
    let (_, recovered) = recover(&vfs, options()).unwrap();
    let carry: Carry =
        Box::new(|| vec![(TenantId::default_tenant(), vec![Section::Position { key: "f".into(), position: 7 }])]);
    let wal = recovered.start(1, carry).unwrap();
    let b = logs(5, 0, "z");
    let held = wait(wal.append(entry(vec![batch(&b)]))).unwrap();
    let boundary = wait(wal.rotate()).unwrap();
    assert!(held.seq < boundary);
    assert_eq!(wal.release_below(boundary).unwrap(), 1);
    assert_eq!(vfs.list_dir(Path::new(DIR)).unwrap(), ["00000002.seg"]);
    assert_eq!(held.locations[0].read().unwrap(), b);
    assert_eq!(wait(wal.rotate()).unwrap(), wait(wal.rotate()).unwrap());
    assert_eq!(wal.release_below(u64::MAX).unwrap(), 0);
    drop(wal);
    // After a start nothing is active, and still the newest file is kept: it has the positions.
    let (records, recovered) = recover(&vfs, options()).unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].kind, &records[0].positions[..]), (Kind::Carry, &[("f".to_owned(), 7)][..]));
    assert!(recovered.last_seq() >= held.seq);
    let wal = recovered.start(1, no_carry()).unwrap();
    assert_eq!(wal.release_below(u64::MAX).unwrap(), 0);
}

#[test]
fn a_panic_while_publishing_fails_that_record_alone() {
    let vfs = SimVfs::new(11);
    let (_, wal) = open(&vfs);
    let bad = Entry { publish: Box::new(|_| panic!("expected by the test")), ..entry(vec![]) };
    assert!(matches!(wait(wal.append(bad)), Err(WalError::Publish)));
    wait(wal.append(entry(vec![]))).unwrap();
}

#[test]
fn lighter_modes_acknowledge_without_a_sync_and_sync_on_request() {
    for durability in [Durability::None, Durability::Interval(std::time::Duration::from_secs(3600))] {
        let vfs = SimVfs::new(12);
        let (_, recovered) = recover(&vfs, WalOptions { durability, ..options() }).unwrap();
        let wal = recovered.start(1, no_carry()).unwrap();
        wait(wal.append(entry(vec![]))).unwrap();
        let before = vfs.syncs();
        wait(wal.append(entry(vec![]))).unwrap();
        assert_eq!(vfs.syncs(), before);
        wait(wal.sync()).unwrap();
        assert_eq!(vfs.syncs(), before + 1);
        assert_eq!(recover(&vfs.crash(), options()).unwrap().0.len(), 2);
    }
}
