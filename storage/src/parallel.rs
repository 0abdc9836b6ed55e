//! One function over many items on all cores, results in the order of the items.
//!
//! **For** work on blocking threads that takes milliseconds. **Not for** waiting: nothing here is async.

use std::{
    cell::Cell,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Threads of one call.
const THREADS_MAX: usize = 8;

/// Work below this many units (samples looked at, about a nanosecond each) is done at once: a thread costs more.
const ALONE_BELOW: usize = 200_000;

/// Items a thread takes at a time: few enough that all end at about the same time.
const SHARES: usize = 8;

thread_local! {
    /// Whether this thread works for a call already: then all cores have work, and a call inside of it is done alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread until it is dropped.
struct Inside;

impl Inside {
    fn enter() -> Self {
        INSIDE.set(true);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// Cores that may be used, at most [`THREADS_MAX`]. Asking the system takes as long as a small query.
pub fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX))
}

/// `f` of each of `0..n`. `work`: what all of it amounts to, in units of about a nanosecond. The first error ends it.
pub fn map<T: Send, E: Send>(n: usize, work: usize, f: impl Fn(usize) -> Result<T, E> + Sync) -> Result<Vec<T>, E> {
    let threads = threads().min(n);
    if threads < 2 || work < ALONE_BELOW || INSIDE.get() {
        return (0..n).map(f).collect();
    }
    let share = n.div_ceil(threads * SHARES).max(1);
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let run = || {
        let _inside = Inside::enter();
        let mut out: Vec<(usize, Result<Vec<T>, E>)> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let start = next.fetch_add(share, Ordering::Relaxed);
            if start >= n {
                break;
            }
            let done: Result<Vec<T>, E> = (start..n.min(start + share)).map(&f).collect();
            if done.is_err() {
                stop.store(true, Ordering::Relaxed);
            }
            out.push((start, done));
        }
        out
    };
    let mut shares = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
        let mut all = run();
        for helper in helpers {
            match helper.join() {
                Ok(done) => all.extend(done),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    shares.sort_by_key(|s| s.0);
    let mut out = Vec::with_capacity(n);
    for (_, done) in shares {
        out.extend(done?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_an_error_ends_it() {
        let squares = map(10_000, usize::MAX, |i| Ok::<_, ()>(i * i)).unwrap();
        assert!(squares.iter().enumerate().all(|(i, s)| *s == i * i) && squares.len() == 10_000);
        assert_eq!(map(10_000, usize::MAX, |i| if i == 7000 { Err(i) } else { Ok(i) }), Err(7000));
        assert_eq!(map(0, usize::MAX, Ok::<usize, ()>), Ok(vec![]));
    }
}
