//! Delete by predicate, with a receipt: parts that hold matching rows are written again without them.
//!
//! Head rows become parts first. The new parts and the removal of the old ones are one commit, so that a crash or a failure
//! at any moment leaves all of the rows or none; the old files go when their last reader has let go of them. Rows
//! acknowledged while a delete runs may stay.
//!
//! A series has a row in `metric_series` for each day it has points on, and new points get none while there is one. So a
//! series whose points have gone is first *doomed*: whoever appends to it from then on brings a row of its own. Once all
//! appends that began before have ended, the days that still have no point lose their row.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arrow::{
    array::{AsArray, BooleanArray, RecordBatch},
    datatypes::Int64Type,
};

use super::merge::{MergeOptions, merge};
use crate::{
    RowFilter, ScanError, ScanRequest, ScanStats, Selector,
    catalog::{NewPart, Operation, PartEntry},
    downsample::Resolution,
    head::HeadRows,
    limits,
    model::{
        Matcher, Table, TenantId, TimeRange, Timestamp,
        time::{MILLIS_PER_DAY, NANOS_PER_DAY},
    },
    part::PartError,
    part_cache::{HeadSource, PartSource},
    scan::{
        select::{self, RowSelector},
        stream::RowSource,
    },
    store::{Inner, TableState},
};

/// Which rows of a table go.
#[derive(Clone)]
pub struct DeleteRequest {
    pub tenant: TenantId,
    /// Any but [`Table::MetricSeries`], whose rows leave with their points ([`crate::Store::delete_series`]).
    pub table: Table,
    pub selector: Selector,
    /// On the table's time column.
    pub range: TimeRange,
    /// `None`: every row that is selected.
    pub filter: Option<Arc<dyn RowFilter>>,
}

/// What a delete did. It is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    /// Files removed, most of them replaced by a smaller one.
    pub files: u64,
    pub rows: u64,
    /// Of the files removed, less those of the files that replace them.
    pub bytes: u64,
    /// Files that could not be read: they are in quarantine, with whatever they hold.
    pub damaged: u64,
}

impl std::ops::AddAssign for Receipt {
    fn add_assign(&mut self, o: Receipt) {
        self.files += o.files;
        self.rows += o.rows;
        self.bytes = self.bytes.saturating_add(o.bytes);
        self.damaged += o.damaged;
    }
}

/// A part, and which of its rows go.
struct Victim<'a> {
    entry: Arc<PartEntry>,
    request: &'a ScanRequest,
    selector: &'a RowSelector,
}

/// What is left of a part that had rows to delete.
struct Rest {
    /// `None`: no row is left.
    part: Option<NewPart>,
    rows: u64,
}

impl Inner {
    pub(crate) fn delete(&self, delete: &DeleteRequest) -> Result<Receipt, ScanError> {
        if delete.table == Table::MetricSeries {
            return Err(ScanError::Invalid("series leave with their points; delete those".into()));
        }
        let mut request = ScanRequest::new(delete.tenant.clone(), delete.table, delete.range)
            .selector(delete.selector.clone())
            .columns(&[]);
        request.filter = delete.filter.clone();
        let selector = self.row_selector(&request)?;
        // Before the samples, so that what is left of them can be aggregated again.
        let (_aggregates, mut receipt) = match delete.table {
            Table::MetricSamples => {
                let one = self.downsampling.lock();
                (Some(one), self.delete_aggregates(delete)?)
            }
            _ => (None, Receipt::default()),
        };
        let Some(state) = self.table(&delete.tenant, delete.table) else { return Ok(receipt) };
        if matches!(&selector, RowSelector::Ids(ids) if ids.is_empty()) {
            return Ok(receipt);
        }
        self.flush_now(&state)?;
        let one = state.merge.lock();
        self.reload_table(&state)?;
        let parts = state.data.read().parts.clone();
        let victims: Vec<Victim<'_>> = parts
            .iter()
            .filter(|p| request.range.overlaps(p.min_ts, p.max_ts))
            .map(|p| Victim { entry: p.clone(), request: &request, selector: &selector })
            .collect();
        drop(parts);
        receipt += self.delete_from(&state, victims)?;
        drop(one);
        self.release_wal();
        self.run_purge();
        Ok(receipt)
    }

    /// Aggregates that a sample to delete may be part of. They are made again of the samples that stay. The receipt counts
    /// no rows: those are the samples.
    fn delete_aggregates(&self, delete: &DeleteRequest) -> Result<Receipt, ScanError> {
        let mut receipt = Receipt::default();
        for resolution in Resolution::ALL {
            let touched = delete.range.start().nanos().saturating_sub(resolution.nanos());
            let range = TimeRange::new(Timestamp(touched), delete.range.end()).unwrap_or(delete.range);
            let aggregates = DeleteRequest { table: resolution.table(), range, filter: None, ..delete.clone() };
            receipt += Receipt { rows: 0, ..self.delete(&aggregates)? };
        }
        Ok(receipt)
    }

    /// Points of the series, and then the series of which no point is left on a day.
    pub(crate) fn delete_series(
        &self,
        tenant: &TenantId,
        matchers: &[Matcher],
        range: TimeRange,
    ) -> Result<Receipt, ScanError> {
        let mut receipt = Receipt::default();
        for table in POINTS {
            receipt += self.delete(&DeleteRequest {
                tenant: tenant.clone(),
                table,
                selector: Selector::Labels(matchers.to_vec()),
                range,
                filter: None,
            })?;
        }
        receipt += self.bury_series(tenant, matchers, range)?;
        self.run_purge();
        Ok(receipt)
    }

    /// Writes the parts again without their victims, in one commit. The table's `merge` lock is held.
    fn delete_from(&self, state: &TableState, victims: Vec<Victim<'_>>) -> Result<Receipt, ScanError> {
        let mut receipt = Receipt::default();
        let (mut adds, mut removes) = (Vec::new(), Vec::new());
        let written = || -> Result<(), ScanError> {
            for victim in victims {
                match self.without(state, &victim) {
                    Ok(None) => {}
                    Ok(Some(rest)) => {
                        receipt.files += 1;
                        receipt.rows += rest.rows;
                        adds.extend(rest.part);
                        removes.push(victim.entry);
                    }
                    Err(ScanError::Corrupt { reason, .. }) => {
                        receipt.damaged += 1;
                        self.set_aside(state, &victim.entry, &reason)?;
                    }
                    Err(e) => return Err(e),
                }
            }
            if self.closed.load(Ordering::Acquire) { Err(closing()) } else { Ok(()) }
        };
        if let Err(e) = written() {
            let catalog = state.catalog.read().clone();
            adds.iter().for_each(|a: &NewPart| self.discard(&catalog.file_of(&a.path)));
            return Err(e);
        }
        if removes.is_empty() {
            return Ok(receipt);
        }
        let (old, new): (u64, u64) = (removes.iter().map(|p| p.size).sum(), adds.iter().map(|a| a.size).sum());
        receipt.bytes = old.saturating_sub(new);
        let days: BTreeSet<i64> = removes.iter().map(|p| p.day()).collect();
        self.replace_parts(state, adds, &removes, Operation::Delete)?;
        self.index_anew(state, &days);
        self.metrics.deletes.fetch_add(1, Ordering::Relaxed);
        self.metrics.delete_rows.fetch_add(receipt.rows, Ordering::Relaxed);
        tracing::info!(tenant = %state.tenant, table = state.table.name(), files = receipt.files, rows = receipt.rows,
            bytes = receipt.bytes, "deleted");
        Ok(receipt)
    }

    /// A part without the rows that go; `None` if it holds none of them.
    fn without(&self, state: &TableState, victim: &Victim<'_>) -> Result<Option<Rest>, ScanError> {
        let (request, selector, entry) = (victim.request, victim.selector, &victim.entry);
        let file = state.catalog.read().file_of(&entry.path);
        let source = PartSource {
            objects: self.objects.clone(),
            cache: self.parts.clone(),
            file: file.clone(),
            entry: entry.clone(),
        };
        let columns = select::needed_columns(request, selector, true)?;
        let mut rows = 0;
        source.read(request, &columns, selector, &ScanStats::default(), &mut |batch| {
            rows += select::matching(request, selector, &batch)?.true_count() as u64;
            if self.stop.load(Ordering::SeqCst) { Err(closing()) } else { Ok(true) }
        })?;
        if rows == 0 {
            return Ok(None);
        }
        let reader = self.parts.open(&self.objects, &file, entry)?;
        if rows == reader.rows() {
            return Ok(Some(Rest { part: None, rows }));
        }
        let keep = |batch: &RecordBatch| {
            if self.stop.load(Ordering::SeqCst) {
                return Err(PartError::Invalid(closing().to_string()));
            }
            let gone = select::matching(request, selector, batch).map_err(|e| PartError::Invalid(e.to_string()))?;
            Ok(BooleanArray::new(!gone.values(), None))
        };
        let (mut damage, mut deleted) = (None, 0);
        let part = self.write_part(state, entry.level, Some(entry.order), entry.bucket, |out| {
            let write = self.write_options(entry.level, self.env.clock.now());
            let options = MergeOptions { keep: Some(&keep), ..MergeOptions::new(write) };
            let merged = merge(&[reader.as_ref().clone()], state.table, &options, out).inspect_err(|e| {
                if let PartError::Corrupt(reason) = e {
                    damage = Some(reason.clone());
                }
            })?;
            deleted = merged.rows_deleted;
            Ok(merged.part)
        });
        let part = match (part, damage) {
            (Ok(mut part), _) => {
                part.tags.extend(crate::downsample::tag_of(std::slice::from_ref(entry), Some(request.range)));
                part
            }
            (Err(_), Some(reason)) => return Err(ScanError::Corrupt { part: file, reason }),
            (Err(e), None) => return Err(e),
        };
        if deleted != rows {
            self.discard(&state.catalog.read().file_of(&part.path));
            return Err(ScanError::Internal(format!(
                "{file} holds {rows} rows to delete, writing it again left out {deleted}; nothing was changed"
            )));
        }
        Ok(Some(Rest { part: Some(part), rows }))
    }

    /// Lets the label index of these days be built from what there is now.
    fn index_anew(&self, state: &TableState, days: &BTreeSet<i64>) {
        // Under this lock nothing is published and nothing flushed, so the head is all that the parts do not hold.
        let mut data = state.data.write();
        data.head.rewritten += 1;
        let mut index = state.index.write();
        index.forget_days(days);
        for batch in &data.head.batches {
            match &batch.rows {
                HeadRows::Memory(rows) => crate::open::index_batch(&mut index, state.table, rows),
                HeadRows::Wal(_) => state.replay_indexed.store(false, Ordering::Release),
            }
        }
    }

    /// Removes the rows of series, day by day, that have no point left.
    fn bury_series(&self, tenant: &TenantId, matchers: &[Matcher], range: TimeRange) -> Result<Receipt, ScanError> {
        let Some(state) = self.table(tenant, Table::MetricSeries) else { return Ok(Receipt::default()) };
        self.flush_now(&state)?;
        // While it is held no row of a later append gets into one of these parts.
        let _one = state.merge.lock();
        self.reload_table(&state)?;
        let parts = state.data.read().parts.clone();
        let candidates: HashSet<(i64, i64)> = self.find_indexed(&state, range, |i| i.find_days(matchers, range))?;
        if candidates.is_empty() {
            return Ok(Receipt::default());
        }
        let _doomed = Doomed::new(&state, &candidates);
        self.outlast_appends()?;
        let alive = self.days_with_points(tenant, &candidates)?;
        let mut dead: HashMap<i64, HashSet<i64>> = HashMap::new();
        for (day, id) in candidates.difference(&alive) {
            dead.entry(*day).or_default().insert(*id);
        }
        let request = ScanRequest::new(tenant.clone(), Table::MetricSeries, TimeRange::ALL).columns(&[]);
        let by_day: HashMap<i64, RowSelector> = dead.into_iter().map(|(d, ids)| (d, RowSelector::Ids(ids))).collect();
        let victims: Vec<Victim<'_>> = parts
            .iter()
            .filter_map(|p| Some(Victim { entry: p.clone(), request: &request, selector: by_day.get(&p.day())? }))
            .collect();
        drop(parts);
        let receipt = self.delete_from(&state, victims)?;
        // What counts for the one who asked are the points.
        Ok(Receipt { rows: 0, ..receipt })
    }

    /// Until every append that may have looked into the index before now is in the head or has failed.
    fn outlast_appends(&self) -> Result<(), ScanError> {
        let before = std::mem::take(&mut *self.appends.lock());
        for _ in 0..APPENDS_WAIT_MAX.as_millis() {
            if Arc::strong_count(&before) == 1 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(ScanError::Internal("appends did not end; the points are deleted, delete again for their series".into()))
    }

    /// Of (day, series) those that have a point, in head or parts.
    fn days_with_points(
        &self,
        tenant: &TenantId,
        candidates: &HashSet<(i64, i64)>,
    ) -> Result<HashSet<(i64, i64)>, ScanError> {
        let selector = RowSelector::Ids(candidates.iter().map(|(_, id)| *id).collect());
        let days: BTreeSet<i64> = candidates.iter().map(|(day, _)| *day).collect();
        let mut out = HashSet::new();
        for table in POINTS.into_iter().chain(Resolution::ALL.map(Resolution::table)) {
            let Some(state) = self.table(tenant, table) else { continue };
            let request = ScanRequest::new(tenant.clone(), table, TimeRange::ALL).columns(&["series_id"]);
            let columns = select::needed_columns(&request, &selector, true)?;
            let (parts, head) = {
                let data = state.data.read();
                (data.parts.clone(), data.head.batches.clone())
            };
            let on_days = |min: i64, max: i64| {
                let (first, last) = (min.div_euclid(NANOS_PER_DAY), max.div_euclid(NANOS_PER_DAY));
                days.range(first..=last.max(first)).next().is_some()
            };
            let mut sources: Vec<Box<dyn RowSource>> = Vec::new();
            for entry in parts.iter().filter(|p| on_days(p.min_ts.nanos(), p.max_ts.nanos())) {
                let file = state.catalog.read().file_of(&entry.path);
                let (objects, cache) = (self.objects.clone(), self.parts.clone());
                sources.push(Box::new(PartSource { objects, cache, file, entry: entry.clone() }));
            }
            for batch in head.into_iter().filter(|b| on_days(b.min_ts, b.max_ts)) {
                sources.push(Box::new(HeadSource { table, batch }));
            }
            for source in sources {
                let read = source.read(&request, &columns, &selector, &ScanStats::default(), &mut |batch| {
                    let column = |name| batch.column_by_name(name).map(|c| c.as_primitive::<Int64Type>().values());
                    if let (Some(ids), Some(times)) = (column("series_id"), column("ts_ms")) {
                        let keys = ids.iter().zip(times).map(|(id, ms)| (ms.div_euclid(MILLIS_PER_DAY), *id));
                        out.extend(keys.filter(|key| candidates.contains(key)));
                    }
                    Ok(true)
                });
                match read {
                    // Its points are not served either.
                    Err(ScanError::Corrupt { part, reason }) => self.report_corrupt(&part, &reason),
                    other => other?,
                }
            }
        }
        Ok(out)
    }
}

const POINTS: [Table; 3] = [Table::MetricSamples, Table::MetricHistograms, Table::MetricExemplars];

/// Longest wait for appends in flight.
const APPENDS_WAIT_MAX: Duration = limits::APPEND_WAIT_MAX.saturating_mul(3);

fn closing() -> ScanError {
    ScanError::Internal("the store is closing; nothing was deleted".into())
}

/// While it lives, the index does not vouch for these (day, series) to appends.
struct Doomed<'a>(&'a TableState);

impl<'a> Doomed<'a> {
    fn new(state: &'a TableState, keys: &HashSet<(i64, i64)>) -> Self {
        state.index.write().doomed = keys.clone();
        Doomed(state)
    }
}

impl Drop for Doomed<'_> {
    fn drop(&mut self) {
        self.0.index.write().doomed.clear();
    }
}
