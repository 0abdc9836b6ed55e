//! What the store counts about itself. Names follow the field; the binary renders them as Prometheus text.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::Table;

/// Counters end in `_total` where they are rendered; all values are since start, gauges are marked.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    rows_in: [AtomicU64; Table::ALL.len()],
    pub append_overloaded: AtomicU64,
    pub append_disk_full: AtomicU64,
    pub flushes: AtomicU64,
    pub flush_failures: AtomicU64,
    pub flush_rows: AtomicU64,
    pub flush_bytes: AtomicU64,
    pub flush_micros: AtomicU64,
    pub compactions: AtomicU64,
    pub compaction_failures: AtomicU64,
    pub compaction_rows: AtomicU64,
    pub compaction_bytes: AtomicU64,
    pub compaction_micros: AtomicU64,
    pub retention_parts: AtomicU64,
    pub downsampled_hours: AtomicU64,
    pub downsampled_rows: AtomicU64,
    pub downsample_failures: AtomicU64,
    pub deletes: AtomicU64,
    pub delete_rows: AtomicU64,
    pub checkpoints: AtomicU64,
    pub quarantined_parts: AtomicU64,
    /// Gauge.
    pub head_bytes: AtomicU64,
    /// Gauge.
    pub head_batches: AtomicU64,
    /// Gauge.
    pub head_rows: AtomicU64,
    pub head_spilled: AtomicU64,
    /// Gauge.
    pub parts: AtomicU64,
    /// Gauge.
    pub part_bytes: AtomicU64,
    /// Gauge.
    pub part_rows: AtomicU64,
    /// Gauge.
    pub series: AtomicU64,
    /// Gauge.
    pub unpacked_bytes: AtomicU64,
    /// Gauge.
    pub wal_bytes: AtomicU64,
    pub wal_fsyncs: AtomicU64,
    pub wal_fsync_micros: AtomicU64,
    pub wal_written_bytes: AtomicU64,
    /// Gauge: percent of the disk in use while writes are refused, else 0.
    pub disk_full_percent: AtomicU64,
    pub object_gets: AtomicU64,
    pub object_get_bytes: AtomicU64,
    pub object_puts: AtomicU64,
    pub object_put_bytes: AtomicU64,
    pub object_lists: AtomicU64,
    pub object_deletes: AtomicU64,
    pub object_failures: AtomicU64,
    pub cache_hit_bytes: AtomicU64,
    pub cache_miss_bytes: AtomicU64,
    pub cache_damaged: AtomicU64,
    /// Gauge.
    pub cache_bytes: AtomicU64,
}

/// One rendered metric: name, help, type, labels, value.
pub struct MetricLine {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: &'static str,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

impl StoreMetrics {
    pub(crate) fn rows_in(&self, table: Table, rows: usize) {
        self.rows_in[usize::from(table.code() - 1)].fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Rows appended to a table since start.
    pub fn rows_in_total(&self, table: Table) -> u64 {
        self.rows_in[usize::from(table.code() - 1)].load(Ordering::Relaxed)
    }

    /// All metrics, in a stable order; lines of one name follow each other.
    pub fn lines(&self) -> Vec<MetricLine> {
        let get = |a: &AtomicU64| a.load(Ordering::Relaxed) as f64;
        let line = |name, help, kind, value| MetricLine { name, help, kind, labels: Vec::new(), value };
        let seconds = |a: &AtomicU64| a.load(Ordering::Relaxed) as f64 / 1e6;
        let mut out: Vec<MetricLine> = Table::ALL
            .iter()
            .map(|t| MetricLine {
                name: "storage_rows_appended_total",
                help: "Rows made durable and visible.",
                kind: "counter",
                labels: vec![("table", t.name().to_owned())],
                value: self.rows_in_total(*t) as f64,
            })
            .collect();
        out.extend([
            line(
                "storage_appends_refused_overload_total",
                "Appends refused because the head had no room.",
                "counter",
                get(&self.append_overloaded),
            ),
            line(
                "storage_appends_refused_disk_full_total",
                "Appends refused because the disk was full.",
                "counter",
                get(&self.append_disk_full),
            ),
            line("storage_flushes_total", "Heads turned into parts.", "counter", get(&self.flushes)),
            line(
                "storage_flush_failures_total",
                "Flushes that failed and will be tried again.",
                "counter",
                get(&self.flush_failures),
            ),
            line("storage_flush_rows_total", "Rows flushed.", "counter", get(&self.flush_rows)),
            line(
                "storage_flush_bytes_total",
                "Bytes of parts written by flushes.",
                "counter",
                get(&self.flush_bytes),
            ),
            line("storage_flush_seconds_total", "Time spent in flushes.", "counter", seconds(&self.flush_micros)),
            line("storage_compactions_total", "Merges of parts.", "counter", get(&self.compactions)),
            line(
                "storage_compaction_failures_total",
                "Merges that failed and will be tried again.",
                "counter",
                get(&self.compaction_failures),
            ),
            line("storage_compaction_rows_total", "Rows written by merges.", "counter", get(&self.compaction_rows)),
            line(
                "storage_compaction_bytes_total",
                "Bytes of parts written by merges.",
                "counter",
                get(&self.compaction_bytes),
            ),
            line(
                "storage_compaction_seconds_total",
                "Time spent in merges.",
                "counter",
                seconds(&self.compaction_micros),
            ),
            line(
                "storage_retention_parts_total",
                "Parts removed because they were past their retention.",
                "counter",
                get(&self.retention_parts),
            ),
            line(
                "storage_downsampled_hours_total",
                "Hours of samples aggregated, those done again because samples came late included.",
                "counter",
                get(&self.downsampled_hours),
            ),
            line("storage_downsampled_rows_total", "Aggregates written.", "counter", get(&self.downsampled_rows)),
            line(
                "storage_downsample_failures_total",
                "Hours that could not be aggregated and will be tried again.",
                "counter",
                get(&self.downsample_failures),
            ),
            line("storage_deletes_total", "Deletes by predicate that removed rows.", "counter", get(&self.deletes)),
            line("storage_delete_rows_total", "Rows deleted by predicate.", "counter", get(&self.delete_rows)),
            line("storage_checkpoints_total", "Delta checkpoints written.", "counter", get(&self.checkpoints)),
            line(
                "storage_quarantined_parts_total",
                "Parts set aside as damaged.",
                "counter",
                get(&self.quarantined_parts),
            ),
            line("storage_head_bytes", "Bytes of rows not yet in parts.", "gauge", get(&self.head_bytes)),
            line("storage_head_batches", "Batches not yet in parts.", "gauge", get(&self.head_batches)),
            line("storage_head_rows", "Rows not yet in parts.", "gauge", get(&self.head_rows)),
            line(
                "storage_head_spilled_rows_total",
                "Rows that were left to the log while nothing could be flushed.",
                "counter",
                get(&self.head_spilled),
            ),
            line("storage_parts", "Live parts.", "gauge", get(&self.parts)),
            line("storage_part_bytes", "Bytes of live parts.", "gauge", get(&self.part_bytes)),
            line("storage_part_rows", "Rows of live parts.", "gauge", get(&self.part_rows)),
            line(
                "storage_series",
                "Stream and series entries of the label index, by day.",
                "gauge",
                get(&self.series),
            ),
            line(
                "storage_unpacked_samples_bytes",
                "Bytes of unpacked samples kept for the next query.",
                "gauge",
                get(&self.unpacked_bytes),
            ),
            line("storage_wal_bytes", "Bytes of WAL segments on disk.", "gauge", get(&self.wal_bytes)),
            line(
                "storage_wal_written_bytes_total",
                "Bytes written to the WAL.",
                "counter",
                get(&self.wal_written_bytes),
            ),
            line("storage_wal_fsyncs_total", "Group commits synced.", "counter", get(&self.wal_fsyncs)),
            line(
                "storage_wal_fsync_seconds_total",
                "Time spent in group commits' fdatasync.",
                "counter",
                seconds(&self.wal_fsync_micros),
            ),
            line(
                "storage_disk_full_percent",
                "Percent of the disk in use while writes are refused, else 0.",
                "gauge",
                get(&self.disk_full_percent),
            ),
        ]);
        out.extend(self.object_lines());
        out
    }

    /// Of a store in a bucket; zeros without one.
    fn object_lines(&self) -> Vec<MetricLine> {
        let request = |operation: &str, a: &AtomicU64| MetricLine {
            name: "storage_object_requests_total",
            help: "Requests to the bucket, tries again not counted.",
            kind: "counter",
            labels: vec![("operation", operation.to_owned())],
            value: a.load(Ordering::Relaxed) as f64,
        };
        let line = |name, help, kind, a: &AtomicU64| MetricLine {
            name,
            help,
            kind,
            labels: Vec::new(),
            value: a.load(Ordering::Relaxed) as f64,
        };
        let counter = |name, help, a| line(name, help, "counter", a);
        vec![
            request("get", &self.object_gets),
            request("put", &self.object_puts),
            request("list", &self.object_lists),
            request("delete", &self.object_deletes),
            counter("storage_object_failures_total", "Requests the bucket did not answer.", &self.object_failures),
            counter("storage_object_read_bytes_total", "Bytes read from the bucket.", &self.object_get_bytes),
            counter("storage_object_written_bytes_total", "Bytes sent to the bucket.", &self.object_put_bytes),
            counter("storage_cache_hit_bytes_total", "Bytes of parts read from the disk.", &self.cache_hit_bytes),
            counter("storage_cache_miss_bytes_total", "Bytes of parts that were fetched.", &self.cache_miss_bytes),
            counter("storage_cache_damaged_total", "Blocks of the cache that had changed.", &self.cache_damaged),
            line("storage_cache_bytes", "Bytes held by the read cache.", "gauge", &self.cache_bytes),
        ]
    }
}
