//! Out of a server into a file.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use arrow::ipc::reader::StreamReader;
use bytes::{Buf as _, Bytes};
use storage::model::Table;
use tokio::sync::mpsc;

use super::{
    ExportArgs, Format, Signal, chain, millis, moment,
    otlp::{self, Line},
    parquet_file,
};

/// Pieces of an answer that wait to be written.
const PIECES_MAX: usize = 8;

/// Time that one request of metrics covers, between these two: as much as fits.
const SLICE_MS_MIN: i64 = 1;
const SLICE_MS_MAX: i64 = 86_400_000;

/// How far ahead rows may be that are exported without an end: what a server takes by default.
const AHEAD_MS: i64 = 600_000;

pub async fn run(args: &ExportArgs, client: &reqwest::Client) -> Result<String, String> {
    if args.format == Format::Otlp && args.signal == Signal::Metrics {
        return slices(args, client).await;
    }
    let tables: &[(&str, Table)] = match (args.format, args.signal) {
        (_, Signal::Logs) => &[("logs", Table::Logs)],
        (_, Signal::Traces) => &[("traces", Table::Spans)],
        (Format::Ndjson | Format::Otlp, Signal::Metrics) => &[("metrics", Table::MetricSamples)],
        (Format::Parquet, Signal::Metrics) => &[
            ("samples", Table::MetricSamples),
            ("histograms", Table::MetricHistograms),
            ("exemplars", Table::MetricExemplars),
        ],
    };
    let mut told = Vec::new();
    for (i, (signal, table)) in tables.iter().enumerate() {
        let answer = ask(args, client, signal, [args.from.as_deref(), args.to.as_deref()]).await?;
        let out = if i == 0 { args.out.clone() } else { with_ending(&args.out, signal) };
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let (format, table, path, kind) = (args.format, *table, out.clone(), args.signal);
        let written = tokio::task::spawn_blocking(move || {
            let body = Body { pieces, piece: Bytes::new() };
            match format {
                Format::Ndjson => lines(body, &path),
                Format::Parquet => parquet(body, &path, table),
                Format::Otlp => requests(body, &path, kind),
            }
        });
        let read = pass(answer, sender).await;
        let rows = written.await.map_err(|e| e.to_string())??;
        read?;
        // Kinds without a row leave no file.
        if i > 0 && rows == 0 {
            std::fs::remove_file(&out).map_err(|e| format!("cannot remove {}: {e}", out.display()))?;
        } else {
            told.push(format!("{rows} rows to {}", out.display()));
        }
    }
    Ok(format!("exported {}", told.join(", ")))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// `window`: first moment and first one beyond.
async fn ask(
    args: &ExportArgs,
    client: &reqwest::Client,
    signal: &str,
    window: [Option<&str>; 2],
) -> Result<reqwest::Response, String> {
    let mut url = url::Url::parse(&args.url).map_err(|e| format!("--url {}: {e}", args.url))?;
    url.set_path("/api/v1/export");
    let format = match args.format {
        Format::Ndjson | Format::Otlp => "ndjson",
        Format::Parquet => "arrow",
    };
    url.query_pairs_mut().append_pair("signal", signal).append_pair("format", format);
    for (name, time) in ["start", "end"].into_iter().zip(window) {
        if let Some(time) = time {
            url.query_pairs_mut().append_pair(name, &moment(time)?);
        }
    }
    if let Some(selector) = &args.selector {
        url.query_pairs_mut().append_pair("selector", selector);
    }
    let mut request = client.get(url);
    if let Some(tenant) = &args.tenant {
        request = request.header("X-Scope-OrgID", tenant);
    }
    let answer = request.send().await.map_err(|e| chain(&e))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    Err(format!("the server answers {status}: {}", answer.text().await.unwrap_or_default()))
}

/// Hands the body on; an end in the middle is an error.
async fn pass(mut answer: reqwest::Response, pieces: mpsc::Sender<io::Result<Bytes>>) -> Result<(), String> {
    loop {
        match answer.chunk().await {
            Ok(None) => return Ok(()),
            Ok(Some(piece)) => {
                if pieces.send(Ok(piece)).await.is_err() {
                    // The writer ended and says why.
                    return Ok(());
                }
            }
            Err(e) => {
                let why = format!("the export ended early, see the server's log: {}", chain(&e));
                let _ = pieces.send(Err(io::Error::other(why.clone()))).await;
                return Err(why);
            }
        }
    }
}

/// The body for a reader that blocks.
struct Body {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Body {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece?,
            }
        }
        let n = self.piece.len().min(into.len());
        self.piece.copy_to_slice(&mut into[..n]);
        Ok(n)
    }
}

/// Writes lines as they come; how many.
fn lines(mut body: Body, path: &Path) -> Result<u64, String> {
    let failed = |e: io::Error| format!("cannot write {}: {e}", path.display());
    let mut out = create(path)?;
    let mut rows = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = body.read(&mut buffer).map_err(|e| e.to_string())?;
        if n == 0 {
            break;
        }
        rows += buffer[..n].iter().filter(|b| **b == b'\n').count() as u64;
        out.write_all(&buffer[..n]).map_err(failed)?;
    }
    out.flush().map_err(failed)?;
    Ok(rows)
}

fn create(path: &Path) -> Result<Box<dyn Write + Send>, String> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(io::stdout()));
    }
    let file = File::create(path).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// Writes lines as requests of OTLP; how many rows.
fn requests(body: Body, path: &Path, signal: Signal) -> Result<u64, String> {
    let failed = |e: io::Error| format!("cannot write {}: {e}", path.display());
    let mut out = create(path)?;
    let mut body = BufReader::new(body);
    let (mut rows, mut piece) = (0, Vec::new());
    loop {
        let n = body.read_until(b'\n', &mut piece).map_err(|e| e.to_string())?;
        if !piece.is_empty() && (n == 0 || piece.len() >= otlp::PIECE_BYTES) {
            let Line { json, rows: written, .. } = otlp::line(signal, &piece)?;
            writeln!(out, "{json}").map_err(failed)?;
            rows += written;
            piece.clear();
        }
        if n == 0 {
            out.flush().map_err(failed)?;
            return Ok(rows);
        }
    }
}

/// Metrics as OTLP, a slice of time at a time: the rows of a histogram's point are all of one time.
async fn slices(args: &ExportArgs, client: &reqwest::Client) -> Result<String, String> {
    let from = args.from.as_deref().ok_or("metrics as OTLP go by slices of time: say from when on, as --from 6h")?;
    let from = millis(from)?;
    let to = match args.to.as_deref() {
        Some(to) => millis(to)?,
        None => millis("0s")?.saturating_add(AHEAD_MS),
    };
    let failed = |e: io::Error| format!("cannot write {}: {e}", args.out.display());
    let mut out = create(&args.out)?;
    let (mut at, mut width, mut rows, mut unsupported) = (from, SLICE_MS_MAX, 0, 0);
    while at < to {
        let end = at.saturating_add(width).min(to);
        let Some(exported) = slice(args, client, at, end).await? else {
            if width <= SLICE_MS_MIN {
                return Err(format!(
                    "one millisecond has more than {} bytes of points; narrow it with --selector",
                    otlp::SLICE_BYTES_MAX
                ));
            }
            width = (width / 2).max(SLICE_MS_MIN);
            continue;
        };
        if !exported.is_empty() {
            let line = tokio::task::spawn_blocking(move || otlp::line(Signal::Metrics, &exported));
            let line = line.await.map_err(|e| e.to_string())??;
            rows += line.rows;
            unsupported += line.unsupported;
            writeln!(out, "{}", line.json).map_err(failed)?;
        }
        at = end;
        width = (width * 2).min(SLICE_MS_MAX);
    }
    out.flush().map_err(failed)?;
    let left = if unsupported == 0 { String::new() } else { format!(", {unsupported} have no form in OTLP") };
    Ok(format!("exported {rows} rows to {}{left}", args.out.display()))
}

/// Exported lines from `from` on and before `to`, in milliseconds; `None`: they are too many for one request.
async fn slice(args: &ExportArgs, client: &reqwest::Client, from: i64, to: i64) -> Result<Option<Vec<u8>>, String> {
    let seconds = |ms: i64| {
        let sign = if ms < 0 { "-" } else { "" };
        format!("{sign}{}.{:03}", ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000)
    };
    let mut answer = ask(args, client, "metrics", [Some(&seconds(from)), Some(&seconds(to))]).await?;
    let mut out = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|e| chain(&e))? {
        if out.len() + piece.len() > otlp::SLICE_BYTES_MAX {
            return Ok(None);
        }
        out.extend_from_slice(&piece);
    }
    Ok(Some(out))
}

fn parquet(body: Body, path: &Path, table: Table) -> Result<u64, String> {
    if path.as_os_str() == "-" {
        return Err("Parquet needs a file: give one with --out".to_owned());
    }
    let batches = StreamReader::try_new(body, None).map_err(|e| format!("cannot read the export: {e}"))?;
    parquet_file::write(path, table, batches.map(|b| b.map_err(|e| format!("cannot read the export: {e}"))))
}
