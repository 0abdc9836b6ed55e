//! What a query reads: selector by selector, as a whole, or evaluated and forgotten while it is read.
//!
//! **For** leaves at the query's own steps, which see a stretch of time or a share of the series at once: a day of samples is
//! never in memory. **Not for** which source answers one (`aggregates`), nor for what is computed (`eval`).

use std::sync::Arc;

use storage::{Store, model::TenantId};

use super::Need;
use crate::{
    error::QueryError,
    fetch::{self, Selected, SeriesData, Shares},
    promql::{
        aggregates::Answered,
        ast::Selector,
        eval::{self, Evaluator, Leaf, Steps, Streamed},
        value::Point,
    },
};

/// The least time of one piece of a streamed leaf: compacted parts hold an hour or more.
const PIECE_MS_MIN: i64 = 2 * 3_600_000;

/// Samples a piece shall have about: few beside what a query may hold, many beside what a piece costs.
const PIECE_SAMPLES: usize = 5_000_000;

/// Parts that are read at once, of each of which a row group or two are unpacked at a time (2 MiB each).
const PIECE_PARTS: usize = 48;

/// What reading a selector gives.
pub(super) enum Read {
    Samples(Vec<Arc<SeriesData>>),
    /// Of its leaf.
    Computed(Vec<eval::Series>),
}

/// What a query has read so far, and what it may still.
pub(in crate::promql) struct Fetched<'a> {
    pub store: &'a Store,
    pub tenant: &'a TenantId,
    pub series_max: usize,
    pub samples_max: usize,
    pub budget: fetch::SampleBudget,
    pub samples_peak: usize,
    pub answered: Answered,
}

impl Fetched<'_> {
    /// Counts what was at hand.
    pub(super) fn taken(&mut self, found: Vec<Arc<SeriesData>>) -> Result<Vec<Arc<SeriesData>>, QueryError> {
        let samples = found.iter().map(|s| s.ts.len()).sum();
        self.budget.take(samples)?;
        self.samples_peak += samples;
        Ok(found)
    }

    pub(super) async fn read(
        &mut self,
        evaluator: &Evaluator,
        need: Need,
        steps: Steps,
        reading: fetch::Reading,
    ) -> Result<Read, QueryError> {
        let times = (need.from, need.to);
        let matchers = &need.selector.matchers;
        let selected = fetch::select(self.store, self.tenant, matchers, times, self.series_max).await?;
        let selected = Arc::new(selected);
        let Some(leaf) = &need.leaf else { return self.whole(&selected, times, reading).await };
        if selected.is_empty() {
            return Ok(Read::Computed(Vec::new()));
        }
        let histograms =
            reading.starts || fetch::may_have_histograms(self.store, self.tenant, &selected, times).await?;
        if histograms && need.to - need.from <= PIECE_MS_MIN {
            return self.whole(&selected, times, reading).await;
        }
        let streamed =
            Streamed::new(need.selector.clone(), leaf.clone(), steps, evaluator.lookback_ms, selected.len());
        let streamed = if histograms {
            self.in_pieces(evaluator, streamed, &selected, times, reading).await?
        } else {
            self.in_shares(evaluator, streamed, &selected, times).await?
        };
        let (eval, grouped) = (evaluator.clone(), need.grouped);
        tokio::task::spawn_blocking(move || streamed.finish(&eval, selected.labels().cloned(), grouped))
            .await
            .map_err(|e| QueryError::Internal(e.to_string()))?
            .map(Read::Computed)
    }

    /// All samples of a selector.
    async fn whole(
        &mut self,
        selected: &Arc<Selected>,
        times: (i64, i64),
        reading: fetch::Reading,
    ) -> Result<Read, QueryError> {
        let before = self.budget.left();
        let all = fetch::load(self.store, self.tenant, selected, times, reading, &mut self.budget).await?;
        self.samples_peak += before - self.budget.left();
        Ok(Read::Samples(all.into_iter().filter(|s| !s.is_empty()).map(Arc::new).collect()))
    }

    /// The values of a leaf without histograms, whose samples are read, evaluated and forgotten some series at a time.
    async fn in_shares(
        &mut self,
        evaluator: &Evaluator,
        mut streamed: Streamed,
        selected: &Arc<Selected>,
        (from, to): (i64, i64),
    ) -> Result<Streamed, QueryError> {
        let Some(range) = fetch::range_of_millis(from, to) else { return Ok(streamed) };
        let cuts = self.store.sample_cuts(self.tenant, range, PIECE_PARTS);
        let mut start = from;
        let mut held = 0;
        for end in cuts.into_iter().map(|cut| cut - 1).chain([to]) {
            let Some(range) = fetch::range_of_millis(start, end).filter(|_| start <= end) else { continue };
            let shares = Shares::open(self.store, self.tenant, selected, range, self.samples_max).await?;
            let most = self.budget.left().saturating_sub(shares.held());
            let eval = evaluator.clone();
            let work = move || {
                let peak = streamed.push_shares(&eval, &shares, end, most)?;
                Ok::<_, QueryError>((streamed, peak + shares.held()))
            };
            let (back, peak) =
                tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))??;
            streamed = back;
            self.samples_peak = self.samples_peak.max(peak + held);
            self.budget.give_back(held);
            held = streamed.held();
            self.budget.take(held)?;
            start = end + 1;
        }
        self.budget.give_back(held);
        Ok(streamed)
    }

    /// The points of each selected series, and whether it has a float.
    #[allow(clippy::too_many_arguments)]
    pub(in crate::promql) async fn streamed_points(
        &mut self,
        evaluator: &Evaluator,
        selector: &Selector,
        (from, to): (i64, i64),
        leaf: Leaf,
        steps: Steps,
        reading: fetch::Reading,
        selected: &Arc<Selected>,
    ) -> Result<(Vec<Option<Vec<Point>>>, Vec<bool>), QueryError> {
        let streamed = Streamed::new(selector.clone(), leaf, steps, evaluator.lookback_ms, selected.len());
        Ok(self.in_pieces(evaluator, streamed, selected, (from, to), reading).await?.into_points())
    }

    /// The values of a leaf, whose samples are read and forgotten piece by piece of time; the next piece is read while one
    /// is evaluated.
    async fn in_pieces(
        &mut self,
        evaluator: &Evaluator,
        mut streamed: Streamed,
        selected: &Arc<Selected>,
        (from, to): (i64, i64),
        reading: fetch::Reading,
    ) -> Result<Streamed, QueryError> {
        let mut length = PIECE_MS_MIN;
        let mut start = from;
        // What is read and not yet evaluated, up to when, and its samples.
        let mut waiting: Option<(Vec<SeriesData>, i64, usize)> = None;
        let mut held = 0;
        loop {
            let end = if start > to { None } else { Some(piece_end(start, length).min(to)) };
            let before = self.budget.left();
            let read = async {
                match end {
                    Some(end) => {
                        let times = (start, end);
                        fetch::load(self.store, self.tenant, selected, times, reading, &mut self.budget)
                            .await
                            .map(Some)
                    }
                    None => Ok(None),
                }
            };
            let (eval, taken) = (evaluator.clone(), waiting.take());
            let evaluated = async move {
                let work = move || {
                    let Some((samples, until, n)) = taken else { return Ok((streamed, 0)) };
                    streamed.push(&eval, samples, until)?;
                    Ok::<_, QueryError>((streamed, n))
                };
                tokio::task::spawn_blocking(work).await.map_err(|e| QueryError::Internal(e.to_string()))?
            };
            let (read, evaluated) = tokio::join!(read, evaluated);
            let (back, n) = evaluated?;
            streamed = back;
            let new = before - self.budget.left();
            self.samples_peak = self.samples_peak.max(new + n + held);
            // Of the piece that was evaluated only what the next steps see is still there.
            let kept = streamed.held().min(n + held);
            self.budget.give_back(n + held - kept);
            held = kept;
            match (read?, end) {
                (Some(samples), Some(end)) => {
                    waiting = Some((samples, end, new));
                    // As many samples as wanted, going by the piece before.
                    let aim = PIECE_SAMPLES.min(self.samples_max / 8);
                    let wanted = (aim as f64 / new.max(1) as f64) * (end - start + 1) as f64;
                    // Slowly, for what a piece had says little of the next one.
                    let most = length.saturating_mul(2);
                    length = (wanted as i64).min(most).max(PIECE_MS_MIN);
                    start = end + 1;
                }
                _ => break,
            }
        }
        self.budget.give_back(held);
        Ok(streamed)
    }
}

/// The last millisecond before a full hour, `length` or somewhat less after `start`: parts end there.
fn piece_end(start: i64, length: i64) -> i64 {
    const HOUR_MS: i64 = 3_600_000;
    let end = (start.saturating_add(length)).div_euclid(HOUR_MS) * HOUR_MS;
    if end > start { end - 1 } else { start.saturating_add(length) }
}
