//! The last minutes of the series that rules read again and again, kept in memory and brought up to date by what is new.
//!
//! **For** selectors that are asked with every evaluation of a rule group: their series are found once and each new sample is
//! looked at once, however many rules read it. **Not for** queries of people: whatever is not kept here is read from the store,
//! and whoever asks must be ready for that.
//!
//! # Invariants
//! 1. [`Recent::find`] gives what a scan at that moment gives, or nothing at all.
//! 2. Bounded: [`SERIES_MAX`], [`SAMPLES_MAX`], [`SPAN_MS_MAX`]; selectors beyond are not kept.
//!
//! Series with histograms are not kept: what one says depends on the one before it.

mod memory;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use storage::{
    ScanError, ScanOrder, ScanRequest, Selector, Store, Tail,
    model::{Matcher, Table, TenantId, TimeRange, Timestamp, time::MILLIS_PER_DAY},
};
use tokio::sync::OwnedMutexGuard;

use crate::{
    error::QueryError,
    fetch::{self, SeriesData},
};
use memory::Memory;

/// Series kept of all tenants.
const SERIES_MAX: usize = 400_000;
/// Samples kept of all tenants, 16 bytes each.
const SAMPLES_MAX: usize = 8_000_000;
/// How far back from an evaluation a kept selector may look, ms.
const SPAN_MS_MAX: i64 = 3_660_000;
/// Selectors kept of a tenant.
const SELECTORS_MAX: usize = 20_000;
/// A selector nobody asked for so long is forgotten, ms of evaluation time.
const UNUSED_MS: i64 = 600_000;
/// After so long everything is read anew, so that series that have ended leave, ms.
const ANEW_MS: i64 = 2 * 3_600_000;
/// Rows that are taken over, or series that are given, on an async thread.
const INLINE_ROWS: usize = 4_096;
/// Spans of selectors that are read together, ms.
const SPANS_MS: [i64; 3] = [400_000, 1_000_000, i64::MAX];

/// What an expression reads: series, and the closed interval of sample times, ms.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub matchers: Vec<Matcher>,
    pub from_ms: i64,
    pub to_ms: i64,
    /// The time of the evaluation.
    pub at_ms: i64,
}

/// Why a selector's series are not at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    /// Nobody has asked for it so far, or not for as long a time.
    Unknown,
    /// It cannot be kept.
    Unfit,
}

/// How often it was of use.
#[derive(Debug, Default)]
pub struct Figures {
    pub found: AtomicU64,
    pub missed: AtomicU64,
    pub reloads: AtomicU64,
    pub samples: AtomicU64,
    pub series: AtomicU64,
}

/// Clones share it.
#[derive(Clone)]
pub struct Recent(Arc<Inner>);

struct Inner {
    store: Store,
    tenants: Mutex<HashMap<TenantId, Arc<tokio::sync::Mutex<Memory>>>>,
    figures: Figures,
    noted: Mutex<HashMap<TenantId, Vec<Wanted>>>,
}

type Guard = OwnedMutexGuard<Memory>;

impl Recent {
    pub fn new(store: Store) -> Self {
        Recent(Arc::new(Inner {
            store,
            tenants: Mutex::default(),
            figures: Figures::default(),
            noted: Mutex::default(),
        }))
    }

    pub fn figures(&self) -> &Figures {
        &self.0.figures
    }

    async fn memory(&self, tenant: &TenantId) -> Guard {
        let memory = self.0.tenants.lock().entry(tenant.clone()).or_default().clone();
        let mut memory = memory.lock_owned().await;
        // What others leave.
        let left = |figure: &AtomicU64, own: u64, max: usize| {
            let others = figure.load(Ordering::Relaxed).saturating_sub(own);
            max.saturating_sub(usize::try_from(others).unwrap_or(usize::MAX))
        };
        let figures = &self.0.figures;
        memory.samples_max = left(&figures.samples, memory.told.0, SAMPLES_MAX);
        memory.series_max = left(&figures.series, memory.told.1, SERIES_MAX);
        memory
    }

    /// The series of the selector with a sample in the interval, sorted by labels, each with its samples in it; `None`: not
    /// kept, or not with all of the interval.
    pub async fn find(&self, tenant: &TenantId, wanted: &Wanted, series_max: usize) -> Option<Vec<Arc<SeriesData>>> {
        let memory = self.memory(tenant).await;
        let found = match memory.keeps(wanted) {
            false => Err(Miss::Unknown),
            true => match self.up_to_date(tenant, memory).await {
                Ok(mut memory) => {
                    self.count(&mut memory);
                    match memory.series_of(wanted) <= INLINE_ROWS {
                        true => memory.find(wanted, series_max),
                        false => {
                            let wanted = wanted.clone();
                            apart(move || Ok(memory.find(&wanted, series_max))).await.unwrap_or(Err(Miss::Unfit))
                        }
                    }
                }
                Err(e) => {
                    tracing::debug!(error = %e, "recent samples cannot be read");
                    Err(Miss::Unfit)
                }
            },
        };
        let counter = if found.is_ok() { &self.0.figures.found } else { &self.0.figures.missed };
        counter.fetch_add(1, Ordering::Relaxed);
        if matches!(found, Err(Miss::Unknown)) {
            self.note(tenant, wanted.clone());
        }
        found.ok()
    }

    /// This will be asked for.
    pub fn note(&self, tenant: &TenantId, wanted: Wanted) {
        if wanted.at_ms.saturating_sub(wanted.from_ms) > SPAN_MS_MAX || wanted.to_ms > wanted.at_ms {
            return;
        }
        let mut noted = self.0.noted.lock();
        let of = noted.entry(tenant.clone()).or_default();
        if of.len() < SELECTORS_MAX {
            of.push(wanted);
        }
    }

    /// Keeps everything that was noted.
    pub async fn keep_noted(&self, tenant: &TenantId) -> Result<(), QueryError> {
        let noted = self.0.noted.lock().remove(tenant);
        match noted {
            Some(wanted) => self.keep(tenant, wanted).await,
            None => Ok(()),
        }
    }

    /// Keeps these selectors from now on, as far as bounds allow. One reading for all of them.
    async fn keep(&self, tenant: &TenantId, wanted: Vec<Wanted>) -> Result<(), QueryError> {
        let Some(at_ms) = wanted.iter().map(|w| w.at_ms).max() else { return Ok(()) };
        let mut memory = self.memory(tenant).await;
        memory.at_ms = memory.at_ms.max(at_ms);
        let mut memory = self.up_to_date(tenant, memory).await?;
        if memory.is_full() {
            return Ok(());
        }
        let mut ids = HashSet::new();
        for w in wanted {
            let span_ms = w.at_ms.saturating_sub(w.from_ms);
            let known = memory.keeps(&w);
            if !known && memory.selectors() >= SELECTORS_MAX {
                continue;
            }
            let series = self.series(tenant, &w.matchers, w.from_ms, w.at_ms).await?;
            if series.len() + memory.series() > memory.series_max {
                continue;
            }
            ids.extend(memory.select(&w, span_ms, series));
        }
        let mut memory = self.read(tenant, memory, ids).await?;
        self.count(&mut memory);
        Ok(())
    }

    /// Takes over what is new, so that nothing is missed when it is flushed.
    pub async fn follow(&self) {
        let tenants: Vec<TenantId> = self.0.tenants.lock().keys().cloned().collect();
        for tenant in tenants {
            let memory = self.memory(&tenant).await;
            if memory.selectors() > 0
                && let Ok(mut memory) = self.up_to_date(&tenant, memory).await
            {
                self.count(&mut memory);
            }
        }
    }

    fn count(&self, memory: &mut Memory) {
        let (samples, series) = (memory.samples() as u64, memory.series() as u64);
        let told = std::mem::replace(&mut memory.told, (samples, series));
        let figures = &self.0.figures;
        for (figure, before, now) in [(&figures.samples, told.0, samples), (&figures.series, told.1, series)] {
            // Wraps where it shrinks, and back.
            figure.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Series that live on any day from that of `from_ms` to the one after `at_ms`: those need no row of their own to come back.
    async fn series(
        &self,
        tenant: &TenantId,
        matchers: &[Matcher],
        from_ms: i64,
        at_ms: i64,
    ) -> Result<Vec<memory::Found>, QueryError> {
        let start = from_ms.div_euclid(MILLIS_PER_DAY).saturating_mul(MILLIS_PER_DAY);
        let end = at_ms.saturating_add(MILLIS_PER_DAY);
        let Some(range) = TimeRange::new(Timestamp::from_millis(start), Timestamp::from_millis(end)) else {
            return Ok(Vec::new());
        };
        let found = fetch::series(&self.0.store, tenant, matchers, range).await?;
        Ok(found.into_iter().map(|s| (s.id, s.labels)).collect())
    }

    /// Lays what has come since over what is kept; reads anew what is no longer good.
    async fn up_to_date(&self, tenant: &TenantId, mut memory: Guard) -> Result<Guard, QueryError> {
        let old = memory.at_ms.saturating_sub(memory.read_ms) > ANEW_MS;
        if memory.swept_ms.saturating_add(60_000) < memory.at_ms {
            let work = move || {
                memory.sweep(UNUSED_MS);
                Ok(memory)
            };
            memory = apart(work).await?;
        }
        let store = &self.0.store;
        if memory.selectors() == 0 || old || memory.damaged {
            return self.anew(tenant, memory, true).await;
        }
        // Series last: every sample seen before is then of a series that is known.
        let before = store.mark(tenant, Table::MetricSamples);
        let samples = store.tail(tenant, Table::MetricSamples, memory.samples);
        let histograms = store.tail(tenant, Table::MetricHistograms, memory.histograms);
        let series = store.tail(tenant, Table::MetricSeries, memory.series);
        let (Some(series), Some(histograms)) = (series, histograms) else {
            return self.anew(tenant, memory, true).await;
        };
        let Some(samples) = samples else {
            let mut memory = absorbed(memory, vec![series, histograms]).await?;
            memory.samples = before;
            return self.anew(tenant, memory, false).await;
        };
        absorbed(memory, vec![series, histograms, samples]).await
    }

    /// Reads all samples again; `select`: and finds the series again.
    async fn anew(&self, tenant: &TenantId, mut memory: Guard, select: bool) -> Result<Guard, QueryError> {
        let store = &self.0.store;
        memory.damaged = true;
        let mut ids: HashSet<i64> = HashSet::new();
        if select {
            memory.samples = store.mark(tenant, Table::MetricSamples);
            memory.histograms = store.mark(tenant, Table::MetricHistograms);
            memory.series = store.mark(tenant, Table::MetricSeries);
            for w in memory.clear() {
                let (from_ms, at_ms) = (w.from_ms, w.at_ms);
                let series = self.series(tenant, &w.matchers, from_ms, at_ms).await?;
                if series.len() + memory.series() <= memory.series_max {
                    ids.extend(memory.select(&w, at_ms - from_ms, series));
                }
            }
            memory.read_ms = memory.at_ms;
        } else {
            ids = memory.forget_samples();
        }
        memory.damaged = false;
        if !ids.is_empty() {
            self.0.figures.reloads.fetch_add(1, Ordering::Relaxed);
            memory = self.read(tenant, memory, ids).await?;
        }
        Ok(memory)
    }

    /// Reads the samples of these series, and which of them have histograms. What is not read to its end is marked damaged.
    async fn read(&self, tenant: &TenantId, mut memory: Guard, ids: HashSet<i64>) -> Result<Guard, QueryError> {
        memory.damaged = true;
        let mut low = 0;
        for span in SPANS_MS {
            let (of, span_ms) = memory.of_span(&ids, low, span);
            low = span;
            if of.is_empty() {
                continue;
            }
            let from_ms = memory.at_ms.saturating_sub(span_ms).saturating_sub(memory::SLACK_MS);
            memory = self.read_from(tenant, memory, of.into(), from_ms).await?;
        }
        memory.damaged = false;
        Ok(memory)
    }

    async fn read_from(
        &self,
        tenant: &TenantId,
        mut memory: Guard,
        ids: Arc<[i64]>,
        from_ms: i64,
    ) -> Result<Guard, QueryError> {
        let Some(range) = fetch::range_of_millis(from_ms, i64::MAX / 2_000_000) else { return Ok(memory) };
        let request = |table, columns: &[&str]| {
            ScanRequest::new(tenant.clone(), table, range)
                .selector(Selector::Ids(ids.clone()))
                .columns(columns)
                .order(ScanOrder::Mixed, None)
        };
        let columns = ["series_id", "ts_ms", "value"];
        let mut stream = self.0.store.scan(request(Table::MetricSamples, &columns)).await?;
        let (mut batches, mut rows) = (Vec::new(), memory.samples_without(&ids));
        while let Some(batch) = stream.next_of().await {
            let batch = batch?;
            rows += batch.1.num_rows();
            if rows > memory.samples_max {
                memory.drop_series(&ids);
                return Ok(memory);
            }
            batches.push(batch);
        }
        // Of points with one time the one that was committed last counts.
        batches.sort_by_key(|(source, _)| *source);
        let mut stream = self.0.store.scan(request(Table::MetricHistograms, &columns[..2])).await?;
        let mut histograms = Vec::new();
        while let Some(batch) = stream.next().await {
            histograms.push(batch?);
        }
        let work = move || {
            memory.begin(&ids, from_ms);
            memory.take_histograms(&histograms)?;
            for (_, batch) in &batches {
                memory.take_samples(batch)?;
            }
            Ok::<_, ScanError>(memory)
        };
        apart(work).await
    }
}

/// Runs on another thread.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ScanError> + Send + 'static,
) -> Result<T, QueryError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))?;
    Ok(done?)
}

/// Takes tails over, in this order; on another thread if they are long.
async fn absorbed(mut memory: Guard, tails: Vec<Tail>) -> Result<Guard, QueryError> {
    let rows: usize = tails.iter().map(Tail::rows).sum();
    if rows == 0 {
        return Ok(memory);
    }
    let in_place = rows <= INLINE_ROWS && tails.iter().all(Tail::in_memory);
    let work = move || {
        memory.damaged = true;
        for tail in &tails {
            memory.absorb(tail)?;
        }
        memory.damaged = false;
        Ok::<_, ScanError>(memory)
    };
    if in_place {
        return Ok(work()?);
    }
    apart(work).await
}
