//! Out of a file into a server, in pieces that are stored once however often they are sent.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
    time::{Duration, Instant},
};

use bytes::Bytes;
use query::http::export;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_128;

use super::{Format, ImportArgs, chain, otlp, parquet_file};

/// Bytes of a piece, one line more or less.
const PIECE_BYTES: usize = 4 << 20;

/// Bytes of one line at most; of OTLP a line is a request.
const LINE_BYTES_MAX: usize = 16 << 20;
const REQUEST_BYTES_MAX: usize = 96 << 20;

/// Pieces read ahead.
const PIECES_MAX: usize = 2;

/// Bytes by which a file's format is told.
const BEGINNING_BYTES: u64 = 64;

/// How long a server that does not take a piece is asked again.
const RETRY_FOR: Duration = Duration::from_secs(300);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(200);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Taken {
    accepted: u64,
    rejected: u64,
    /// Requests of OTLP, whose answers do not tell how many rows were taken.
    requests: u64,
    /// The first refusals.
    errors: Vec<String>,
}

pub async fn run(args: &ImportArgs, client: &reqwest::Client) -> Result<String, String> {
    let mut url = url::Url::parse(&args.url).map_err(|e| format!("--url {}: {e}", args.url))?;
    let mut taken = Taken::default();
    for path in &args.files {
        let (sender, mut pieces) = mpsc::channel::<Result<Piece, String>>(PIECES_MAX);
        let (path, format) = (path.clone(), args.format);
        let reading = tokio::task::spawn_blocking(move || {
            if let Err(e) = read(&path, format, &sender) {
                let _ = sender.blocking_send(Err(e));
            }
        });
        let mut number = 0_u64;
        while let Some(piece) = pieces.recv().await {
            let Piece { path, body } = piece?;
            url.set_path(path);
            send(client, &url, args.tenant.as_deref(), number, body.into(), &mut taken).await?;
            number += 1;
        }
        reading.await.map_err(|e| e.to_string())?;
    }
    let requests = match taken.requests {
        0 => String::new(),
        n => format!(" and {n} requests of OTLP"),
    };
    let told = format!("imported {} rows{requests}, {} rows refused", taken.accepted, taken.rejected);
    if taken.rejected == 0 { Ok(told) } else { Err(format!("{told}: {}", taken.errors.join("; "))) }
}

/// What is sent at once.
#[derive(Debug, PartialEq)]
struct Piece {
    path: &'static str,
    body: Vec<u8>,
}

const ROWS: &str = "/api/v1/import";

type Pieces = mpsc::Sender<Result<Piece, String>>;

/// Whether somebody still takes pieces.
fn hand_on(out: &Pieces, path: &'static str, body: &mut Vec<u8>) -> bool {
    out.blocking_send(Ok(Piece { path, body: std::mem::take(body) })).is_ok()
}

fn read(path: &Path, format: Option<Format>, out: &Pieces) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot read {}: {e}", path.display());
    if path.as_os_str() == "-" {
        return match format {
            Some(Format::Parquet) => Err("Parquet is read from files only".to_owned()),
            Some(Format::Otlp) => requests(&mut io::stdin().lock(), out).map_err(failed),
            _ => lines(&mut io::stdin().lock(), out).map_err(failed),
        };
    }
    let format = match format {
        Some(format) => format,
        None => {
            let mut begins = Vec::new();
            File::open(path).and_then(|f| f.take(BEGINNING_BYTES).read_to_end(&mut begins)).map_err(failed)?;
            if begins.starts_with(b"PAR1") {
                Format::Parquet
            } else if otlp::request_in(&begins).is_some() {
                Format::Otlp
            } else {
                Format::Ndjson
            }
        }
    };
    let open = || File::open(path).map(BufReader::new).map_err(failed);
    match format {
        Format::Ndjson => return lines(&mut open()?, out).map_err(failed),
        Format::Otlp => return requests(&mut open()?, out).map_err(failed),
        Format::Parquet => {}
    }
    let (table, batches) = parquet_file::read(path)?;
    let mut piece = Vec::new();
    for batch in batches {
        let text = export::ndjson(table, &batch?).map_err(|e| e.to_string())?;
        for line in text.split_inclusive('\n') {
            piece.extend_from_slice(line.as_bytes());
            if piece.len() >= PIECE_BYTES && !hand_on(out, ROWS, &mut piece) {
                return Ok(());
            }
        }
    }
    if !piece.is_empty() {
        hand_on(out, ROWS, &mut piece);
    }
    Ok(())
}

/// Each line of OTLP's JSON is a piece of its own.
fn requests(from: &mut dyn BufRead, out: &Pieces) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = from.take(REQUEST_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(());
        }
        if n == REQUEST_BYTES_MAX && line.last() != Some(&b'\n') {
            return Err(io::Error::other(format!("a line is longer than {REQUEST_BYTES_MAX} bytes")));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let path = otlp::request_in(&line).ok_or_else(|| {
            io::Error::other("a line begins with none of resourceLogs, resourceMetrics and resourceSpans")
        })?;
        if !hand_on(out, path, &mut line) {
            return Ok(());
        }
    }
}

/// Cuts the text behind lines. The same text always falls into the same pieces.
fn lines(from: &mut dyn BufRead, out: &Pieces) -> io::Result<()> {
    let mut piece = Vec::new();
    loop {
        let before = piece.len();
        let n = from.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut piece)?;
        if n == LINE_BYTES_MAX && piece.last() != Some(&b'\n') {
            return Err(io::Error::other(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
        }
        if piece.len() >= PIECE_BYTES || (piece.len() == before && !piece.is_empty()) {
            let end = piece.len() == before;
            if !hand_on(out, ROWS, &mut piece) || end {
                return Ok(());
            }
        } else if piece.len() == before {
            return Ok(());
        }
    }
}

/// The id under which a piece is stored once: of its place and its bytes.
fn batch_id(number: u64, piece: &[u8]) -> String {
    format!("{:032x}", xxh3_128(piece) ^ xxh3_128(&number.to_le_bytes()))
}

async fn send(
    client: &reqwest::Client,
    url: &url::Url,
    tenant: Option<&str>,
    number: u64,
    piece: Bytes,
    taken: &mut Taken,
) -> Result<(), String> {
    let id = batch_id(number, &piece);
    let rows = url.path() == ROWS;
    let (began, mut pause) = (Instant::now(), RETRY_PAUSE_MIN);
    loop {
        let mut request = client
            .post(url.clone())
            .header("Content-Type", if rows { "application/x-ndjson" } else { "application/json" })
            .header("X-Batch-Id", &id)
            .body(piece.clone());
        if let Some(tenant) = tenant {
            request = request.header("X-Scope-OrgID", tenant);
        }
        let (why, after) = match request.send().await {
            Ok(answer) if answer.status().is_success() || (answer.status() == 400 && rows) => {
                let status = answer.status();
                let text = answer.text().await.map_err(|e| chain(&e))?;
                let counted = if rows { count(&text, taken) } else { count_refused(&text, taken) };
                return counted.ok_or_else(|| format!("the server answers {status}: {text}"));
            }
            Ok(answer) => {
                let status = answer.status();
                let after = answer.headers().get("Retry-After").and_then(|v| v.to_str().ok()?.parse().ok());
                let text = answer.text().await.unwrap_or_default();
                let why = format!("the server answers {status}: {text}");
                if !matches!(status.as_u16(), 408 | 429 | 502..=504) {
                    return Err(why);
                }
                (why, after.map(Duration::from_secs))
            }
            Err(e) => (chain(&e), None),
        };
        if began.elapsed() >= RETRY_FOR {
            return Err(format!(
                "{why}; what came before piece {} is stored, run the import again to go on",
                number + 1
            ));
        }
        tokio::time::sleep(after.unwrap_or(pause).min(RETRY_PAUSE_MAX)).await;
        pause = (pause * 2).min(RETRY_PAUSE_MAX);
    }
}

/// Refusals that are told.
const ERRORS_SHOWN: usize = 5;

/// Adds up an answer of OTLP; `None` if it is none.
fn count_refused(answer: &str, taken: &mut Taken) -> Option<()> {
    let answer: serde_json::Value = serde_json::from_str(answer).ok()?;
    let partial = answer.as_object()?.get("partialSuccess");
    let refused = ["rejectedLogRecords", "rejectedDataPoints", "rejectedSpans"].into_iter().find_map(|name| {
        let n = partial?.get(name)?;
        n.as_u64().or_else(|| n.as_str()?.parse().ok())
    });
    taken.requests += 1;
    if let Some(n) = refused.filter(|n| *n > 0) {
        taken.rejected += n;
        let why = partial?.get("errorMessage").and_then(|m| m.as_str()).unwrap_or_default();
        if taken.errors.len() < ERRORS_SHOWN {
            taken.errors.push(why.to_owned());
        }
    }
    Some(())
}

/// Adds up an answer; `None` if it is none.
fn count(answer: &str, taken: &mut Taken) -> Option<()> {
    let answer: serde_json::Value = serde_json::from_str(answer).ok()?;
    taken.accepted += answer["accepted"].as_u64()?;
    taken.rejected += answer["rejected"].as_u64()?;
    for e in answer["errors"].as_array()? {
        if taken.errors.len() < ERRORS_SHOWN {
            taken.errors.push(e["reason"].as_str().unwrap_or_default().to_owned());
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_behind_lines_and_are_the_same_every_time() {
        let text: Vec<u8> =
            (0..200_000).flat_map(|n| format!("line number {n} of the file, padded\n").into_bytes()).collect();
        let cut = || {
            let (sender, mut pieces) = mpsc::channel(1000);
            lines(&mut &text[..], &sender).unwrap();
            drop(sender);
            let mut out = Vec::new();
            while let Some(piece) = pieces.blocking_recv() {
                out.push(piece.unwrap().body);
            }
            out
        };
        let pieces = cut();
        assert!(pieces.len() > 1 && pieces.iter().all(|p| p.ends_with(b"\n") && p.len() < PIECE_BYTES + 100));
        assert_eq!(pieces.concat(), text);
        assert_eq!(pieces, cut());
        assert_ne!(batch_id(0, b"x"), batch_id(1, b"x"), "equal pieces of one file are all stored");
    }
}
