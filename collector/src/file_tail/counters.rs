//! What a tailing source counts of itself.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $field:ident => $name:literal),+ $(,)?) => {
        /// Counters and gauges (`files`, `lag_bytes`) of one source; shared between its thread and whoever exports them.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $field: AtomicU64,)+
        }

        impl Counters {
            /// Names as exported, without a component prefix, and values.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$(($name, self.$field.load(Relaxed)),)+]
            }
        }
    };
}

counters! {
    /// Records read.
    lines => "lines_total",
    /// Bytes of files read and done with.
    bytes => "bytes_total",
    /// Records the sink has.
    delivered => "delivered_lines_total",
    /// Records the sink refused for good.
    rejected => "rejected_lines_total",
    /// Records longer than the limit that were split.
    split => "split_lines_total",
    /// Records delivered without their end.
    incomplete => "incomplete_lines_total",
    /// Lines that are not of the file's format, delivered as they stand.
    malformed => "malformed_lines_total",
    /// Records with bytes that are not UTF-8, replaced by U+FFFD.
    invalid_utf8 => "invalid_utf8_lines_total",
    /// Files given up because they cannot be opened or read, each time it was tried.
    errors => "read_errors_total",
    /// Files renamed away from the path they were found under.
    rotations => "rotations_total",
    /// Files that became shorter or were written anew.
    truncations => "truncations_total",
    /// Files known now.
    files => "files",
    /// Bytes in known files that are not read yet.
    lag_bytes => "lag_bytes",
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Relaxed);
    }
}
