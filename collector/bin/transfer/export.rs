//! Out of a server into a file.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use arrow::ipc::reader::StreamReader;
use bytes::{Buf as _, Bytes};
use storage::model::Table;
use tokio::sync::mpsc;

use super::{ExportArgs, Format, Signal, chain, moment, parquet_file};

/// Pieces of an answer that wait to be written.
const PIECES_MAX: usize = 8;

pub async fn run(args: &ExportArgs, client: &reqwest::Client) -> Result<String, String> {
    let tables: &[(&str, Table)] = match (args.format, args.signal) {
        (Format::Ndjson, Signal::Logs) | (Format::Parquet, Signal::Logs) => &[("logs", Table::Logs)],
        (Format::Ndjson, Signal::Traces) | (Format::Parquet, Signal::Traces) => &[("traces", Table::Spans)],
        (Format::Ndjson, Signal::Metrics) => &[("metrics", Table::MetricSamples)],
        (Format::Parquet, Signal::Metrics) => &[
            ("samples", Table::MetricSamples),
            ("histograms", Table::MetricHistograms),
            ("exemplars", Table::MetricExemplars),
        ],
    };
    let mut told = Vec::new();
    for (i, (signal, table)) in tables.iter().enumerate() {
        let answer = ask(args, client, signal).await?;
        let out = if i == 0 { args.out.clone() } else { with_ending(&args.out, signal) };
        let (sender, pieces) = mpsc::channel(PIECES_MAX);
        let (format, table, path) = (args.format, *table, out.clone());
        let written = tokio::task::spawn_blocking(move || {
            let body = Body { pieces, piece: Bytes::new() };
            match format {
                Format::Ndjson => lines(body, &path),
                Format::Parquet => parquet(body, &path, table),
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

async fn ask(args: &ExportArgs, client: &reqwest::Client, signal: &str) -> Result<reqwest::Response, String> {
    let mut url = url::Url::parse(&args.url).map_err(|e| format!("--url {}: {e}", args.url))?;
    url.set_path("/api/v1/export");
    let format = match args.format {
        Format::Ndjson => "ndjson",
        Format::Parquet => "arrow",
    };
    url.query_pairs_mut().append_pair("signal", signal).append_pair("format", format);
    for (name, time) in [("start", &args.from), ("end", &args.to)] {
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
    let mut out: Box<dyn Write> = if path.as_os_str() == "-" {
        Box::new(io::stdout().lock())
    } else {
        Box::new(BufWriter::new(File::create(path).map_err(failed)?))
    };
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

fn parquet(body: Body, path: &Path, table: Table) -> Result<u64, String> {
    if path.as_os_str() == "-" {
        return Err("Parquet needs a file: give one with --out".to_owned());
    }
    let batches = StreamReader::try_new(body, None).map_err(|e| format!("cannot read the export: {e}"))?;
    parquet_file::write(path, table, batches.map(|b| b.map_err(|e| format!("cannot read the export: {e}"))))
}
