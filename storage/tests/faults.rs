//! The whole store on a disk that fails: random appends, flushes, merges, checkpoints and restarts under power cuts, torn
//! writes, lost names, `EIO` and a full disk. What was acknowledged is found once and unchanged, whatever happens; what was
//! refused is found whole or not at all; a store always opens again.
//!
//! `SIGHTLINE_SEEDS=n` runs seeds 0..n, `SIGHTLINE_SEED=x` one of them.

#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/rows.rs"]
mod rows;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

fn seeds(default: u64) -> Vec<u64> {
    if let Ok(seed) = std::env::var("SIGHTLINE_SEED") {
        return vec![seed.parse().expect("SIGHTLINE_SEED is a number")];
    }
    let n = std::env::var("SIGHTLINE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    (0..n).collect()
}

#[test]
fn acknowledged_rows_are_found_once_and_unchanged_whatever_the_disk_does() {
    let seeds = seeds(150);
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(Vec::new());
    let totals = Mutex::new(disk::Totals::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let run = || {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                        runtime.block_on(disk::run(*seed))
                    };
                    match catch_unwind(AssertUnwindSafe(run)) {
                        Ok(t) => totals.lock().unwrap().add(&t),
                        Err(_) => {
                            eprintln!("seed {seed} failed; SIGHTLINE_SEED={seed} runs it alone");
                            failed.lock().unwrap().push(*seed);
                        }
                    }
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap();
    eprintln!("{} seeds: {totals:?}", seeds.len());
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} seeds failed: {failed:?}", failed.len(), seeds.len());
    // A run that never met a fault would prove nothing.
    if seeds.len() >= 100 {
        assert!(totals.acked > 0 && totals.refused > 0 && totals.survived > 0, "{totals:?}");
        assert!(totals.deletes > 0 && totals.failed_deletes > 0, "{totals:?}");
        assert!(totals.power_cuts > 0 && totals.failed_flushes > 0 && totals.retried > 0, "{totals:?}");
    }
}
