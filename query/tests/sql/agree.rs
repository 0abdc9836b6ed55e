//! Random queries, each planned with everything this crate adds and without: both must answer alike.

use arrow::{
    array::RecordBatch,
    datatypes::SchemaRef,
    util::display::{ArrayFormatter, FormatOptions},
};
use bytes::Bytes;
use query::{
    limits::Limits,
    sql::{Encoder, Piece, SqlEngine, SqlError, SqlRequest, SqlStats},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use storage::model::{TenantId, TimeRange, Timestamp};

use crate::data::{BASE, SECOND, World, hex, trace};

/// A line for each row.
struct Lines;

impl Encoder for Lines {
    fn begin(&mut self, _: &SchemaRef) -> Result<Bytes, SqlError> {
        Ok(Bytes::new())
    }

    fn rows(&mut self, batch: &RecordBatch) -> Result<Bytes, SqlError> {
        let options = FormatOptions::default().with_null("NULL");
        let columns: Vec<_> = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
        let line = |row| columns.iter().map(|c| c.value(row).to_string()).collect::<Vec<_>>().join("|") + "\u{1e}";
        Ok((0..batch.num_rows()).map(line).collect::<String>().into())
    }

    fn end(&mut self, _: &SqlStats) -> Result<Bytes, SqlError> {
        Ok(Bytes::new())
    }
}

async fn lines(engine: &SqlEngine, request: SqlRequest) -> Result<(Vec<String>, SqlStats), SqlError> {
    let mut answer = engine.run(TenantId::default(), request, Box::new(Lines))?;
    let mut text = Vec::new();
    loop {
        match answer.next().await.expect("an end") {
            Ok(Piece::Bytes(b)) => text.extend_from_slice(&b),
            Ok(Piece::End(stats)) => {
                let text = String::from_utf8(text).unwrap();
                let mut lines: Vec<String> = text.split_terminator('\u{1e}').map(str::to_owned).collect();
                lines.sort();
                return Ok((lines, stats));
            }
            Err(e) => return Err(e),
        }
    }
}

fn time(rng: &mut StdRng) -> String {
    let ns = BASE + rng.random_range(-600..7800) * SECOND + rng.random_range(0..2);
    let at = chrono::DateTime::from_timestamp_nanos(ns).to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
    if rng.random_bool(0.5) { format!("'{at}'") } else { format!("timestamp '{}'", at.trim_end_matches('Z')) }
}

fn one<'a>(rng: &mut StdRng, from: &[&'a str]) -> &'a str {
    from[rng.random_range(0..from.len())]
}

fn predicate(rng: &mut StdRng, table: &str, depth: usize) -> String {
    if depth > 0 && rng.random_bool(0.3) {
        let (a, b) = (predicate(rng, table, depth - 1), predicate(rng, table, depth - 1));
        return match rng.random_range(0..4) {
            0 => format!("({a} or {b})"),
            1 => format!("not ({a})"),
            _ => format!("({a} and {b})"),
        };
    }
    let op = one(rng, &["=", "<", "<=", ">", ">=", "<>"]);
    match rng.random_range(0..10) {
        0 | 1 => format!("ts {op} {}", time(rng)),
        2 => format!("{} {op} ts", time(rng)),
        3 => format!("ts between {} and {}", time(rng), time(rng)),
        4 => format!("date_trunc('hour', ts) {op} timestamp '2023-11-14 23:00:00'"),
        n if table == "logs" => match n {
            5 => format!(
                "label(stream_labels, 'app') {} '{}'",
                one(rng, &["=", "<>", "<"]),
                one(rng, &["shop", "we%b", ""])
            ),
            6 => format!("label(stream_labels, 'app') {} ('web', 'db', 'none')", one(rng, &["in", "not in"])),
            7 => format!(
                "attr(stream_labels, 'app') {} '{}'",
                one(rng, &["like", "not like", "ilike"]),
                one(rng, &["we%", "%", "_b", "WE\\%b"])
            ),
            8 => format!("trace_id {} '{}'", one(rng, &["=", "<>"]), hex(&trace(rng.random_range(0..7)))),
            _ => one(
                rng,
                &[
                    "severity_number > 9",
                    "service_name is null",
                    "service_name = 'shop'",
                    "body like '%7%'",
                    "attr_number(attrs, 'code') > 2",
                ],
            )
            .into(),
        },
        n if table == "spans" => match n {
            5..=7 => format!("trace_id {} '{}'", one(rng, &["=", "<>", "<"]), hex(&trace(rng.random_range(0..7)))),
            8 => format!("trace_id in ('{}', '{}')", hex(&trace(1)), hex(&trace(2))),
            _ => one(rng, &["duration_ns > 500000", "name = 'pay'", "service_name like 'sh%'"]).into(),
        },
        n => match n {
            5 => format!("metric {} '{}'", one(rng, &["=", "<>", ">"]), one(rng, &["up", "requests_total", "none"])),
            6 => format!("job {} ('api', 'a.b')", one(rng, &["in", "not in"])),
            7 => format!("ts_ms {op} {}", BASE / 1_000_000 + rng.random_range(-10..100) * 15_000),
            8 => format!("label(labels, 'job') like '{}'", one(rng, &["a%", "a_b", "%b", "a.%"])),
            _ => one(
                rng,
                &[
                    "value > 0",
                    "value = 1",
                    "instance is null",
                    "job is not null",
                    "label(labels, 'nothing') is null",
                ],
            )
            .into(),
        },
    }
}

fn query(rng: &mut StdRng) -> String {
    let table = one(rng, &["logs", "logs", "spans", "samples"]);
    let (group, all) = match table {
        "logs" => (
            &["service_name", "label(stream_labels, 'app')", "severity_number", "attr(attrs, 'code')"][..],
            "ts, body",
        ),
        "spans" => (&["service_name", "name", "trace_id"][..], "ts, span_id"),
        _ => (&["metric", "job", "label(labels, 'zone')", "value > 0"][..], "ts, series_id, value"),
    };
    let filter = if rng.random_bool(0.85) { format!(" where {}", predicate(rng, table, 2)) } else { String::new() };
    let (a, b) = (one(rng, group), one(rng, group));
    match rng.random_range(0..9) {
        0 => format!("select count(*) from {table}{filter}"),
        1 | 2 => format!("select {a}, count(*), count(1) as n from {table}{filter} group by {a}"),
        3 => format!("select {a} x, {b} y, count(*) from {table} t{filter} group by x, y having count(*) > 3"),
        4 => format!("select distinct {a} from {table}{filter}"),
        5 => format!("select count(*), min(ts), max(ts) from {table}{filter}"),
        // All rows in order are one answer; the first of them by time another, where times do not repeat.
        6 => format!(
            "select t.ts as at from {table} t{filter} order by at {} limit {}",
            one(rng, &["asc", "desc"]),
            rng.random_range(0..60)
        ),
        7 => {
            format!("select n, count(*) from (select {a} k, count(*) n from {table}{filter} group by k) q group by n")
        }
        _ => format!("select {all} from {table}{filter}"),
    }
}

#[tokio::test]
async fn plans_with_and_without_pushdown_agree() {
    for seed in 0..3 {
        let w = World::new(100 + seed, 6, 150).await;
        let engine = SqlEngine::new(w.store.clone(), Limits::default());
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut spared = 0;
        for i in 0..80 {
            let text = query(rng);
            let mut request = SqlRequest::new(&text);
            if rng.random_bool(0.2) {
                let from = BASE + rng.random_range(0..3600) * SECOND;
                request.within = TimeRange::new(Timestamp(from), Timestamp(from + 1800 * SECOND)).unwrap();
            }
            let plain = lines(&engine, SqlRequest { plain: true, ..request.clone() }).await;
            let with = lines(&engine, request).await;
            match (plain, with) {
                (Ok((expected, cost)), Ok((got, less))) => {
                    assert_eq!(got, expected, "seed {seed}, query {i}: {text}");
                    spared += cost.rows_scanned.saturating_sub(less.rows_scanned);
                }
                (Err(a), Err(b)) => assert_eq!(a.error.to_string(), b.error.to_string(), "{text}"),
                (a, b) => panic!("seed {seed}, query {i}: {text}: {a:?} but {b:?}"),
            }
        }
        assert!(spared > 1000, "pushdown spared the reading of {spared} rows only");
    }
}
