//! Deletes the files of parts that left the log, once the last reader has let go of them.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::PartEntry;
use crate::{model::Timestamp, object::Objects};

/// Parts that wait for deletion. A reader holds a part by holding its `Arc<PartEntry>`.
///
/// The grace is for readers we do not know of (another program that has loaded the table and opens the file a moment
/// later). It is short by default: whoever needs longer reads a copy.
#[derive(Debug, Default)]
pub struct Purge {
    waiting: Mutex<Vec<Waiting>>,
    grace: Duration,
}

#[derive(Debug)]
struct Waiting {
    file: String,
    entry: Arc<PartEntry>,
    since: Timestamp,
}

/// What one [`Purge::run`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub files: usize,
    pub bytes: u64,
    /// Still read, or within the grace.
    pub waiting: usize,
    /// Deletions that failed; they are tried again.
    pub failed: usize,
}

impl Purge {
    pub fn new(grace: Duration) -> Self {
        Purge { waiting: Mutex::new(Vec::new()), grace }
    }

    /// Takes over a part that was removed from the log. `file`: its path in the store.
    pub fn retire(&self, file: String, entry: Arc<PartEntry>, now: Timestamp) {
        self.waiting.lock().push(Waiting { file, entry, since: now });
    }

    /// Deletes what nobody reads any more. Blocking.
    pub fn run(&self, store: &dyn Objects, now: Timestamp) -> Purged {
        let grace = i64::try_from(self.grace.as_nanos()).unwrap_or(i64::MAX);
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let mut done = Purged::default();
        let mut kept = Vec::new();
        let mut away = false;
        for w in waiting {
            // The count is one when this list is the only holder: nobody can get at the part any more, because it has
            // left the live list, so the count cannot rise again.
            if away || Arc::strong_count(&w.entry) > 1 || now.nanos().saturating_sub(w.since.nanos()) < grace {
                kept.push(w);
                continue;
            }
            match store.delete(&w.file) {
                Ok(()) => {
                    done.files += 1;
                    done.bytes += w.entry.size;
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => {
                    tracing::warn!(file = w.file, error = %e, "cannot delete a retired part, will try again");
                    done.failed += 1;
                    // The others would wait for the same answer.
                    away = crate::object::bridge::away(&e).is_some();
                    kept.push(w);
                }
            }
        }
        done.waiting = kept.len();
        self.waiting.lock().append(&mut kept);
        done
    }

    /// Parts that wait.
    pub fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
