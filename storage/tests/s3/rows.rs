//! Rows with a number each, and what a store holds of them.

use std::collections::BTreeMap;

use arrow::array::AsArray as _;
use storage::{
    Append, AppendError, Environment, ScanError, ScanRequest, Store, StoreConfig,
    model::{LogBatchBuilder, LogRow, Table, TenantId, TimeRange},
    object::Remote,
};

pub const HOUR: i64 = 3_600_000_000_000;
pub const DAY: i64 = 24 * HOUR;

pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

pub fn config(dir: &std::path::Path) -> StoreConfig {
    let mut c = StoreConfig::new(dir);
    c.background = false;
    c.durability = storage::Durability::None;
    c.cache_bytes = 16 << 20;
    c
}

pub async fn open(config: &StoreConfig, remote: &Remote) -> Result<Store, storage::OpenError> {
    let env = Environment { remote: Some(remote.clone()), ..Environment::default() };
    Store::open_on(config.clone(), env).await
}

/// Numbers `from..to` as log rows at `ts`.
pub async fn append(store: &Store, from: u64, to: u64, ts: i64) -> Result<(), AppendError> {
    let mut b = LogBatchBuilder::new();
    for n in from..to {
        let labels = format!("{{\"app\":\"app{}\"}}", n % 5);
        let ts = ts + n as i64;
        b.push(&LogRow { ts, stream_labels: &labels, body: &format!("row {n}"), ..LogRow::default() });
    }
    let rows = vec![(Table::Logs, b.finish())];
    let append = Append { tenant: TenantId::default_tenant(), rows, sources: vec![], batch_id: None };
    store.append(append).await.map(|_| ())
}

/// How often each number is there.
pub async fn found(store: &Store) -> Result<BTreeMap<u64, usize>, ScanError> {
    let request = ScanRequest::new(TenantId::default_tenant(), Table::Logs, TimeRange::ALL).columns(&["body"]);
    let mut out = BTreeMap::new();
    for batch in store.scan(request).await?.collect().await? {
        for body in batch.column(0).as_string::<i32>().iter().flatten() {
            *out.entry(body.strip_prefix("row ").unwrap().parse().unwrap()).or_default() += 1;
        }
    }
    Ok(out)
}

/// All of `0..n`, each once.
pub async fn holds_exactly(store: &Store, n: u64) {
    let want: BTreeMap<u64, usize> = (0..n).map(|n| (n, 1)).collect();
    assert_eq!(found(store).await.unwrap(), want);
}
