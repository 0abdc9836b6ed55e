//! `/query` and `/query_range`: parameters to a request of the engine, its value to JSON.

use std::time::{Duration, Instant, SystemTime};

use axum::extract::Request;

use super::{Answer, Api, TRUNCATED};
use crate::{
    error::QueryError,
    http::{
        encode, envelope,
        params::{Params, invalid},
    },
    limits::POINTS_PER_SERIES_MAX,
    promql::{Counted, InstantRequest, Output, RangeRequest, Source, Value},
};

pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `timeout` or `lookback_delta`, above zero.
fn positive(params: &Params, name: &str) -> Result<Option<Duration>, QueryError> {
    match params.duration(name)? {
        Some(ms) if ms <= 0 => Err(invalid(name, "must be greater than 0")),
        ms => Ok(ms.map(|ms| Duration::from_millis(ms.unsigned_abs()))),
    }
}

/// `max_source_resolution`: `auto`, `raw` or the longest bucket of aggregates that may answer.
fn source(params: &Params) -> Result<Source, QueryError> {
    const NAME: &str = "max_source_resolution";
    match params.get(NAME) {
        None | Some("") => Ok(Source::Configured),
        Some("auto") => Ok(Source::Auto),
        Some("raw") => Ok(Source::Raw),
        Some(text) => match params.duration(NAME)? {
            Some(0) => Ok(Source::Raw),
            Some(ms) if ms > 0 => Ok(Source::AtMost(ms)),
            _ => Err(invalid(NAME, &format!("{text:?}: expected auto, raw or a duration such as 5m or 1h"))),
        },
    }
}

pub(super) async fn instant(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let time_ms = params.time("time")?.unwrap_or_else(now_ms);
    let stats = stats(&params);
    let request = InstantRequest {
        query: params.get("query").unwrap_or("").to_owned(),
        time_ms: bounded("time", time_ms)?,
        timeout: positive(&params, "timeout")?,
        lookback: positive(&params, "lookback_delta")?,
        source: source(&params)?,
        count: stats != Stats::None,
    };
    let limit = params.limit()?;
    let begun = Instant::now();
    let output = api.engine.instant(&tenant, request).await?;
    respond(output, limit, stats, begun).await
}

pub(super) async fn range(api: Api, request: Request) -> Answer {
    let (params, tenant) = Params::of(request).await?;
    let time = |name: &str| bounded(name, params.required_time(name)?);
    let (start_ms, end_ms) = (time("start")?, time("end")?);
    if end_ms < start_ms {
        return Err(invalid("end", "end timestamp must not be before start time"));
    }
    let step_ms = params.duration("step")?.ok_or_else(|| invalid("step", "cannot parse \"\" to a valid duration"))?;
    if step_ms <= 0 {
        return Err(invalid(
            "step",
            "zero or negative query resolution step widths are not accepted. Try a positive integer",
        ));
    }
    if (end_ms - start_ms) / step_ms > POINTS_PER_SERIES_MAX {
        return Err(QueryError::BadData(
            "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)"
                .into(),
        ));
    }
    let stats = stats(&params);
    let request = RangeRequest {
        query: params.get("query").unwrap_or("").to_owned(),
        start_ms,
        end_ms,
        step_ms,
        timeout: positive(&params, "timeout")?,
        lookback: positive(&params, "lookback_delta")?,
        source: source(&params)?,
        count: stats != Stats::None,
    };
    let limit = params.limit()?;
    let begun = Instant::now();
    let output = api.engine.range(&tenant, request).await.map_err(|e| match e {
        QueryError::BadData(why) => invalid("query", &why),
        other => other,
    })?;
    respond(output, limit, stats, begun).await
}

/// Times so far out that their arithmetic could overflow match nothing anyway.
fn bounded(name: &str, ms: i64) -> Result<i64, QueryError> {
    const MS_MAX: i64 = i64::MAX / 1000;
    if (-MS_MAX..=MS_MAX).contains(&ms) { Ok(ms) } else { Err(invalid(name, "timestamp is out of range")) }
}

/// Whether statistics are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stats {
    None,
    Shown,
    /// Those of steps, too.
    All,
    /// Asked for by another word than those there are.
    ShownWithWarning,
}

fn stats(params: &Params) -> Stats {
    match params.get("stats") {
        None => Stats::None,
        Some("true") => Stats::Shown,
        Some("all") => Stats::All,
        Some(_) => Stats::ShownWithWarning,
    }
}

async fn respond(mut output: Output, limit: Option<usize>, stats: Stats, begun: Instant) -> Answer {
    if stats == Stats::ShownWithWarning {
        output.annotations.warn_plain("values of the parameter \"stats\" other than true and all are deprecated");
    }
    if let Some(limit) = limit {
        let cut = match &mut output.value {
            Value::Vector { samples, .. } if samples.len() > limit => {
                samples.truncate(limit);
                true
            }
            Value::Matrix(series) if series.len() > limit => {
                series.truncate(limit);
                true
            }
            _ => false,
        };
        if cut {
            output.annotations.warn_plain(TRUNCATED);
        }
    }
    // A large answer takes longer to write than an async thread may be held.
    tokio::task::spawn_blocking(move || {
        let mut data = String::from("{");
        encode::write_value(&mut data, &output.value);
        if stats != Stats::None {
            let s = output.stats;
            let [five_minutes, hour] = s.answered;
            let looked_at: u64 = s.steps.iter().map(|c| c.samples).sum();
            let read: u64 = s.steps.iter().map(|c| c.read).sum();
            let by_step = if stats == Stats::All { by_step(&s.steps) } else { String::new() };
            let (eval, prepare, queue) = (s.eval.as_secs_f64(), s.prepare.as_secs_f64(), s.queue.as_secs_f64());
            data.push_str(&format!(
                ",\"stats\":{{\"timings\":{{\"evalTotalTime\":{},\"resultSortTime\":0,\"queryPreparationTime\":{prepare},\
                 \"innerEvalTime\":{eval},\"execQueueTime\":{queue},\"execTotalTime\":{}}},\
                 \"samples\":{{\"totalQueryableSamples\":{looked_at},\"samplesRead\":{read},\"peakSamples\":{peak}{by_step}}},\
                 \"aggregates\":{{\"5m\":{five_minutes},\"1h\":{hour}}}}}",
                eval + prepare,
                begun.elapsed().as_secs_f64(),
                peak = s.samples_peak,
            ));
        }
        data.push('}');
        envelope::prometheus_success(&data, &output.annotations)
    })
    .await
    .map_err(|e| QueryError::Internal(e.to_string()))
}

/// The members of `samples` that tell of each step.
fn by_step(steps: &[Counted]) -> String {
    let mut out = String::new();
    for key in ["totalQueryableSamplesPerStep", "samplesReadPerStep"] {
        let of = |c: &Counted| if key == "samplesReadPerStep" { c.read } else { c.samples };
        out.push_str(&format!(",\"{key}\":["));
        for (i, counted) in steps.iter().enumerate() {
            out.push_str(if i > 0 { ",[" } else { "[" });
            encode::write_time(&mut out, counted.ts_ms);
            out.push_str(&format!(",{}]", of(counted)));
        }
        out.push(']');
    }
    out
}
