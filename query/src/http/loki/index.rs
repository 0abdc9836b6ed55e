//! `index/stats`, `index/volume` and `index/volume_range`: how much a selector holds, counted by reading.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arrow::{array::AsArray, datatypes::Int64Type};
use axum::{
    extract::{Request, State},
    response::Response,
};
use storage::{
    ScanError, ScanRequest, Selector,
    model::{Labels, Matcher, Table, TenantId, TimeRange, Timestamp},
};

use super::{Answer, Api, Failure, encode, json, label_range, params::Params, read};
use crate::logql::{self, Sample, Series};

/// Volumes in an answer, however many are asked for.
pub const VOLUMES_MAX: usize = 1000;

/// Rows and bytes of one stream.
#[derive(Clone, Copy, Default)]
struct Held {
    entries: usize,
    bytes: usize,
}

impl Api {
    /// Rows and bytes (lines and structured metadata) by stream.
    async fn held(
        &self,
        tenant: TenantId,
        matchers: Vec<Matcher>,
        range: TimeRange,
    ) -> Result<(Vec<(Arc<Labels>, Held)>, encode::Cost), Failure> {
        self.run(tenant, move |ctx| {
            Box::pin(async move {
                ctx.check_range(range)?;
                let streams = ctx.store.streams(&ctx.tenant, &matchers, range).await?;
                if streams.is_empty() {
                    return Ok(Vec::new());
                }
                let request = ScanRequest::new(ctx.tenant.clone(), Table::Logs, range)
                    .selector(Selector::Ids(streams.iter().map(|s| s.id).collect()))
                    .columns(&["stream_id", "body", "attrs"]);
                let mut scan = ctx.store.scan(request).await?;
                ctx.watch(scan.stats());
                let mut held: HashMap<i64, Held> = HashMap::new();
                while let Some(batch) = scan.next().await {
                    ctx.check()?;
                    let batch = batch?;
                    let ids = batch
                        .column(0)
                        .as_primitive_opt::<Int64Type>()
                        .ok_or_else(|| ScanError::Internal("stream_id is not an integer".into()))?;
                    let sizes = logql::row_bytes(&batch)?;
                    for (id, bytes) in ids.values().iter().zip(sizes) {
                        let h = held.entry(*id).or_default();
                        h.entries += 1;
                        h.bytes += bytes;
                    }
                }
                Ok(streams.into_iter().filter_map(|s| held.get(&s.id).map(|h| (s.labels, *h))).collect::<Vec<_>>())
            })
        })
        .await
    }
}

pub(super) async fn stats(State(api): State<Api>, request: Request) -> Answer {
    let (tenant, params, _) = read(request).await?;
    let matchers = logql::parse_matchers(params.query())?;
    logql::check_matchers(&matchers)?;
    let range = label_range(&params, api.bounds(&tenant))?;
    let (held, _) = api.held(tenant, matchers, range).await?;
    let (entries, bytes) = held.iter().fold((0, 0), |(e, b), (_, h)| (e + h.entries, b + h.bytes));
    let streams = held.len();
    Ok(json(format!("{{\"streams\":{streams},\"chunks\":{streams},\"bytes\":{bytes},\"entries\":{entries}}}")))
}

/// What a volume request asks for.
struct Volume {
    matchers: Vec<Matcher>,
    targets: Vec<String>,
    by_label: bool,
    limit: usize,
}

impl Volume {
    fn read(params: &Params) -> Result<Self, Failure> {
        let matchers = logql::parse_matchers(params.query())?;
        if !matchers.is_empty() {
            logql::check_matchers(&matchers)?;
        }
        let targets: Vec<String> = params
            .get("targetLabels")
            .unwrap_or("")
            .split(',')
            .filter(|t| !t.is_empty())
            .map(str::to_owned)
            .collect();
        let by_label = match params.get("aggregateBy") {
            None | Some("series") => false,
            Some("labels") => true,
            Some(_) => return Err(Failure::bad("invalid aggregation option")),
        };
        Ok(Volume { matchers, targets, by_label, limit: params.limit(100)?.min(VOLUMES_MAX) })
    }

    /// The label sets a stream's volume counts for.
    fn keys(&self, stream: &Labels) -> Vec<Labels> {
        if self.by_label {
            let wanted = |n: &str| self.targets.is_empty() || self.targets.iter().any(|t| t == n);
            // An empty value names the label alone; such a set cannot be a `Labels`, so the name is the value here.
            return stream.iter().filter(|(n, _)| wanted(n)).map(|(n, _)| Labels::from_pairs([(n, n)])).collect();
        }
        let names: Vec<&str> = if self.targets.is_empty() {
            self.matchers.iter().map(Matcher::name).collect()
        } else {
            self.targets.iter().map(String::as_str).collect()
        };
        if self.targets.is_empty() && names.is_empty() {
            return vec![stream.clone()];
        }
        let set = Labels::from_pairs(names.iter().filter_map(|n| stream.get(n).map(|v| (*n, v))));
        let complete = names.iter().all(|n| set.get(n).is_some());
        if complete || (self.targets.is_empty() && !set.is_empty()) { vec![set] } else { Vec::new() }
    }

    /// Largest first, then by labels; at most `limit`.
    fn ranked(&self, held: &[(Arc<Labels>, Held)]) -> Vec<Sample> {
        let mut sums: BTreeMap<Labels, usize> = BTreeMap::new();
        for (labels, h) in held {
            for key in self.keys(labels) {
                *sums.entry(key).or_default() += h.bytes;
            }
        }
        let mut out: Vec<Sample> =
            sums.into_iter().map(|(labels, bytes)| Sample { labels, value: bytes as f64 }).collect();
        out.sort_by(|a, b| b.value.total_cmp(&a.value));
        out.truncate(self.limit);
        out
    }
}

pub(super) async fn volume(State(api): State<Api>, request: Request) -> Answer {
    let (tenant, params, _) = read(request).await?;
    answer(api, tenant, &params, None).await
}

/// A vector for one step, a matrix for more.
pub(super) async fn volume_range(State(api): State<Api>, request: Request) -> Answer {
    let (tenant, params, _) = read(request).await?;
    let step = params.step()?;
    answer(api, tenant, &params, step).await
}

async fn answer(api: Api, tenant: TenantId, params: &Params, step: Option<i64>) -> Result<Response, Failure> {
    let wanted = Volume::read(params)?;
    let range = label_range(params, api.bounds(&tenant))?;
    let (start, end) = (range.start().nanos(), range.end().nanos());
    let step = step.unwrap_or(i64::MAX);
    if step >= end.saturating_sub(start) {
        let (held, cost) = api.held(tenant, wanted.matchers.clone(), range).await?;
        let samples = wanted.ranked(&held);
        return Ok(json(encode::volumes(end, &samples, wanted.by_label, &cost)));
    }
    if (end - start) / step > logql::limits::POINTS_MAX {
        return Err(Failure::bad(
            "exceeded maximum resolution of 11,000 points per time series. Try increasing the value of the step parameter",
        ));
    }
    let mut times = Vec::new();
    let mut series: BTreeMap<Labels, Vec<(usize, f64)>> = BTreeMap::new();
    let mut total = encode::Cost { scans: Vec::new(), elapsed: std::time::Duration::ZERO, returned: 0 };
    let mut at = start;
    while at < end {
        let to = at.saturating_add(step).min(end);
        let Some(window) = TimeRange::new(Timestamp(at), Timestamp(to)) else { break };
        let (held, cost) = api.held(tenant.clone(), wanted.matchers.clone(), window).await?;
        total.scans.extend(cost.scans);
        total.elapsed += cost.elapsed;
        for s in wanted.ranked(&held) {
            series.entry(s.labels).or_default().push((times.len(), s.value));
        }
        times.push(to);
        at = to;
    }
    let series: Vec<Series> = series
        .into_iter()
        .map(|(labels, points)| {
            let mut values = vec![None; times.len()];
            for (i, v) in points {
                values[i] = Some(v);
            }
            Series { labels, values }
        })
        .collect();
    Ok(json(encode::volume_matrix(&times, &series, wanted.by_label, &total)))
}
