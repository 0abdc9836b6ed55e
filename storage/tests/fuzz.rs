//! Decoders of this crate on broken input: what a disk or a stranger may hand back to us. See [`fuzzing`].

mod fuzzing;

#[path = "faults/rows.rs"]
#[allow(dead_code, reason = "shared with the simulation")]
mod rows;

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use fuzzing::{Target, outline, run, size};
use storage::{
    Append, Durability, Environment, ScanStats, Store, StoreConfig,
    catalog::{
        actions::{Action, parse_entry},
        checkpoint,
    },
    model::{Labels, MatchOp, Matcher, Table, TenantId, TimeRange, Timestamp, json, re2, schema},
    part::{PartReader, PartScan},
    scan::select::RowSelector,
    vfs::{
        Vfs as _,
        sim::{SimClock, SimVfs},
    },
    wal::{self, BatchMeta, WalOptions},
};

const MANIFEST: &str = env!("CARGO_MANIFEST_DIR");

/// A store with some rows of each signal, flushed or not, and its disk.
fn disk(flush: bool) -> SimVfs {
    let vfs = SimVfs::new(1);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let clock = Arc::new(SimClock::new(Timestamp(rows::BASE_MS * 1_000_000)));
        let env = Environment { vfs: Arc::new(vfs.clone()), clock, lock_dir: false, ..Environment::default() };
        let mut config = StoreConfig::new("/store");
        config.background = false;
        let store = Store::open_on(config, env).await.unwrap();
        for (i, signal) in rows::SIGNALS.into_iter().enumerate() {
            for record in 0..3 {
                let append = Append {
                    tenant: TenantId::default_tenant(),
                    rows: rows::build(signal, record, 3),
                    sources: vec![],
                    batch_id: Some([i as u8; 16]).filter(|_| record == 0),
                };
                store.append(append).await.unwrap();
            }
        }
        if flush {
            store.flush().await.unwrap();
        }
        store.abandon().await.unwrap();
    });
    vfs
}

/// Files below a folder whose name ends so.
fn files(vfs: &SimVfs, dir: &Path, end: &str) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for name in vfs.list_dir(dir).unwrap_or_default() {
        let path = dir.join(&name);
        match vfs.metadata(&path) {
            Ok(m) if m.is_dir => out.extend(files(vfs, &path, end)),
            Ok(_) if name.ends_with(end) => out.push(vfs.read(&path, 1 << 20).unwrap()),
            _ => {}
        }
    }
    out
}

#[test]
fn wal_segments_and_their_payloads() {
    let vfs = disk(false);
    let mut seeds = files(&vfs, Path::new("/store"), ".seg");
    assert!(!seeds.is_empty());
    // A segment is made as long as it will get: what is behind the records is nothing.
    for seed in &mut seeds {
        let used = seed.iter().rposition(|b| *b != 0).map_or(0, |n| n + 1);
        seed.truncate(used + 64);
    }
    run(MANIFEST, Target { name: "wal_segment", seeds, words: &[] }, |input| {
        let vfs = SimVfs::new(1);
        let dir = Path::new("/wal");
        vfs.create_dir_all(dir).unwrap();
        vfs.create_new(&dir.join("00000001.seg")).unwrap().append(input).unwrap();
        let mut batches = 0;
        let mut visit = |record: wal::ReplayedRecord| {
            for location in &record.batches {
                batches += usize::from(location.read().is_ok());
            }
        };
        let options = WalOptions::new(Durability::Group, "/quarantine");
        match wal::replay(Arc::new(vfs.clone()), dir, options, &mut visit) {
            Ok(recovered) => {
                format!("{} {} {}", size(batches), recovered.last_seq().min(20), recovered.report.damage.len())
            }
            Err(e) => outline(&e),
        }
    });
    let mut seeds = Vec::new();
    for signal in rows::SIGNALS {
        for count in [2, 100] {
            for (table, batch) in rows::build(signal, 1, count) {
                let encoded = wal::encode_batch(table, &batch).unwrap();
                let head = [table.code(), encoded.meta.form, encoded.meta.rows as u8];
                seeds.push([&head[..], &encoded.meta.schema.to_le_bytes(), &encoded.payload].concat());
            }
        }
    }
    run(MANIFEST, Target { name: "wal_payload", seeds, words: &[] }, |input| {
        let Some((head, payload)) = input.split_at_checked(11) else { return "short".into() };
        let Some(table) = Table::from_code(head[0]) else { return "no table".into() };
        let meta = BatchMeta {
            table,
            form: head[1],
            rows: u32::from(head[2]),
            min_ts: 0,
            max_ts: 1,
            schema: u64::from_le_bytes(head[3..11].try_into().unwrap()),
            payload_crc: crc32c::crc32c(payload),
            payload_len: payload.len() as u32,
        };
        match wal::decode_batch(&meta, payload.to_vec()) {
            Ok(batch) => format!("{table:?} {}", size(batch.num_rows())),
            Err(e) => outline(&e),
        }
    });
}

#[test]
fn parts() {
    let seeds = files(&disk(true), Path::new("/store/data"), ".parquet");
    assert!(seeds.len() >= 3);
    run(MANIFEST, Target { name: "part", seeds, words: &[] }, |input| {
        let reader = match PartReader::open(Arc::new(Bytes::copy_from_slice(input))) {
            Ok(reader) => reader,
            Err(e) => return outline(&e),
        };
        let columns: Vec<usize> = (0..schema::stored(reader.table()).fields().len()).collect();
        let scan = PartScan { columns: &columns, range: TimeRange::ALL, selector: &RowSelector::All };
        let stats = ScanStats::default();
        let mut rows = 0;
        match reader.scan(&scan, &stats) {
            Err(e) => return outline(&e),
            Ok(batches) => {
                for batch in batches {
                    match batch {
                        Ok(batch) => rows += batch.num_rows(),
                        Err(e) => return outline(&e),
                    }
                }
            }
        }
        let found = [reader.streams().is_ok(), reader.series().is_ok(), reader.traces().is_ok()];
        format!("{:?} {} {found:?}", reader.table(), size(rows))
    });
}

#[test]
fn catalog_entries_and_checkpoints() {
    let seeds = files(&disk(true), Path::new("/store/data"), ".json");
    assert!(seeds.len() > 3);
    let words = ["{\"add\":", "null", "\"path\":\"../x\"", "\"size\":-1", "\\u0000", "{}", "\n"];
    let entries: Vec<Action> = seeds.iter().flat_map(|e| parse_entry(e).unwrap()).collect();
    run(MANIFEST, Target { name: "catalog_entry", seeds, words: &words }, |input| match parse_entry(input) {
        Ok(actions) => format!("{} actions", size(actions.len())),
        Err(e) => outline(&e),
    });
    let protocol = entries.iter().find_map(|a| if let Action::Protocol(p) = a { Some(p) } else { None }).unwrap();
    let metadata = entries.iter().find_map(|a| if let Action::MetaData(m) = a { Some(m) } else { None }).unwrap();
    let adds = entries.iter().filter_map(|a| if let Action::Add(add) = a { Some(add) } else { None }).collect();
    let contents = checkpoint::Contents { protocol, metadata, txns: vec![], adds, removes: vec![] };
    let seeds = vec![checkpoint::encode(&contents).unwrap()];
    run(MANIFEST, Target { name: "catalog_checkpoint", seeds, words: &[] }, |input| {
        match checkpoint::decode(Bytes::copy_from_slice(input)) {
            Ok(actions) => format!("{} actions", size(actions.len())),
            Err(e) => outline(&e),
        }
    });
}

#[test]
fn texts() {
    let seeds = vec![
        br#"{"a":[1,-2.5e3,true,null,{"$double":"NaN"},{"$bytes":"AAE="}],"b":"\u00e9\n\"x\""}"#.to_vec(),
        br#"{"app":"web","n":1,"":""}"#.to_vec(),
    ];
    run(MANIFEST, Target { name: "json", seeds, words: &["{\"$double\":", "[", "{", "\"$bytes\"", "1e"] }, |input| {
        let text = String::from_utf8_lossy(input);
        let labels = Labels::from_json(&text).map_or_else(|e| outline(&e), |l| size(l.len()).to_string());
        match json::parse(&text) {
            Ok(_) => labels,
            Err(e) => format!("{labels} {}", outline(&e)),
        }
    });
    let seeds =
        vec![br"(?i)^\Qa.b\E[[:alpha:]\d-z&&~]{2,3}(?P<n>\w+|\bx*?)\pL$".to_vec(), b"a{1,5}{2}|[^]a]".to_vec()];
    let words = ["{", "}", "[", "]", "(?:", ")", "\\Q", "\\E", "\\p{", "[[:", ":]]", "&&", "*", "{999}", "\\b"];
    run(MANIFEST, Target { name: "re2", seeds, words: &words }, |input| {
        let text = String::from_utf8_lossy(input);
        let matcher = Matcher::new("a", MatchOp::Re, text.clone()).map(|m| m.matches_value("abc"));
        match re2::compile(&text) {
            Ok(regex) => format!("{} {}", regex.is_match("a.b x 12"), matcher.is_ok()),
            Err(e) => outline(&e),
        }
    });
    run(
        MANIFEST,
        Target { name: "tenant", seeds: vec![b"team-a_1.b".to_vec()], words: &["..", "/", "\\", "%2e"] },
        |input| match TenantId::parse(&String::from_utf8_lossy(input)) {
            Ok(tenant) => {
                let name = tenant.as_str();
                assert!(!name.contains(['/', '\\', '\0']) && name != "." && name != "..", "{name:?}");
                size(name.len()).to_string()
            }
            Err(e) => outline(&e),
        },
    );
}
