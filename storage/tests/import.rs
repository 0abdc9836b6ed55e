//! Old rows of very many days at once: an archive that is read in.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{array::AsArray as _, datatypes::TimestampNanosecondType};
use storage::{
    Append, Environment, ScanRequest, Store, StoreConfig,
    model::{LogBatchBuilder, LogRow, Table, TenantId, TimeRange, Timestamp},
    vfs::sim::{SimClock, SimVfs},
};

const DAY: i64 = 86_400_000_000_000;
const NOW: i64 = 1_767_225_600_000_000_000;
/// The better part of a year.
const DAYS: i64 = 300;

/// One row a day, the days in no order.
fn archive(request: i64) -> Append {
    let mut rows = LogBatchBuilder::new();
    for i in 0..DAYS {
        let day = i * 7 % DAYS;
        let ts = NOW - day * DAY - request;
        rows.push(&LogRow {
            ts,
            stream_labels: r#"{"app":"tracker"}"#,
            body: &format!("event {day}"),
            ..LogRow::default()
        });
    }
    Append { tenant: TenantId::default(), rows: vec![(Table::Logs, rows.finish())], sources: vec![], batch_id: None }
}

async fn open(vfs: &SimVfs, clock: &Arc<SimClock>) -> Store {
    let mut config = StoreConfig::new("/data");
    config.background = false;
    let env = Environment { vfs: Arc::new(vfs.clone()), clock: clock.clone(), lock_dir: false, remote: None };
    Store::open_on(config, env).await.unwrap()
}

async fn times(store: &Store) -> BTreeSet<i64> {
    let request = ScanRequest::new(TenantId::default(), Table::Logs, TimeRange::ALL);
    let batches = store.scan(request).await.unwrap().collect().await.unwrap();
    let column = |b: &arrow::array::RecordBatch| {
        b.column_by_name("ts").unwrap().as_primitive::<TimestampNanosecondType>().values().to_vec()
    };
    let all: Vec<i64> = batches.iter().flat_map(column).collect();
    let distinct: BTreeSet<i64> = all.iter().copied().collect();
    assert_eq!(all.len(), distinct.len(), "each row once");
    distinct
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_hundreds_of_days_become_a_part_a_day_however_often_they_come() {
    let (vfs, clock) = (SimVfs::new(1), Arc::new(SimClock::new(Timestamp(NOW))));
    let store = open(&vfs, &clock).await;
    let wanted: BTreeSet<i64> = (0..2).flat_map(|r| (0..DAYS).map(move |d| NOW - d * DAY - r)).collect();
    for request in 0..2 {
        store.append(archive(request)).await.unwrap();
        store.flush().await.unwrap();
    }
    let parts = |store: &Store| store.parts_by_level().values().sum::<usize>();
    assert_eq!(parts(&store), 2 * DAYS as usize);
    assert_eq!(times(&store).await, wanted);
    store.compact().await.unwrap();
    // The second row of the first day lies on the day before it.
    assert!((DAYS as usize..=DAYS as usize + 1).contains(&parts(&store)), "{:?}", store.parts_by_level());
    assert_eq!(times(&store).await, wanted);
    store.close().await.unwrap();
    let store = open(&vfs, &clock).await;
    assert_eq!(times(&store).await, wanted);
    store.close().await.unwrap();
}
