//! `sightline backup` and `sightline restore`, and the route by which a running server is asked for a copy of itself.
//!
//! The server writes the copy, since it holds the rows that are in memory only. It writes into a folder only for who can
//! write there themselves: the command puts a secret into the folder and names it.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Query, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use storage::{
    OpenError, Store, StoreConfig,
    backup::{BackupError, Manifest, restore},
};
use tokio::sync::Semaphore;

use crate::cli::{BackupArgs, RestoreArgs};

const PATH: &str = "/api/v1/admin/backup";

/// Holds the secret; gone before the copy begins.
const TOKEN_FILE: &str = ".sightline-backup-token";
const TOKEN_BYTES: usize = 16;

/// Copies made at a time; one more is refused.
const BACKUPS_MAX: usize = 1;

#[derive(Clone)]
struct Api {
    store: Store,
    slots: Arc<Semaphore>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    to: PathBuf,
    token: String,
    data_dir: PathBuf,
}

/// What was copied.
#[derive(Debug, Deserialize, Serialize)]
struct Summary {
    files: u64,
    rows: u64,
    bytes: u64,
    damaged: Vec<String>,
}

impl From<&Manifest> for Summary {
    fn from(m: &Manifest) -> Self {
        Summary {
            files: m.files(),
            rows: m.rows(),
            bytes: m.bytes(),
            damaged: m.damaged().map(str::to_owned).collect(),
        }
    }
}

pub fn routes(store: Store) -> Router {
    let api = Api { store, slots: Arc::new(Semaphore::new(BACKUPS_MAX)) };
    Router::new().route(PATH, post(serve_backup)).with_state(api)
}

async fn serve_backup(State(api): State<Api>, Query(asked): Query<Asked>) -> Response {
    let refused = |status: StatusCode, why: &str| (status, format!("{why}\n")).into_response();
    let Ok(_slot) = api.slots.try_acquire() else {
        return refused(StatusCode::TOO_MANY_REQUESTS, "a backup is under way; try again when it is done");
    };
    let own = api.store.config().dir.canonicalize();
    if !asked.to.is_absolute() || own.is_err() || asked.data_dir.canonicalize().ok() != own.ok() {
        return refused(StatusCode::CONFLICT, "this server has another data directory; name its address with --url");
    }
    let to = asked.to.clone();
    let proven = tokio::task::spawn_blocking(move || take_token(&to, &asked.token)).await;
    if !proven.unwrap_or(false) {
        return refused(StatusCode::FORBIDDEN, "the folder does not hold the secret that was named");
    }
    match api.store.backup(asked.to).await {
        Ok(manifest) => Json(Summary::from(&manifest)).into_response(),
        Err(e @ (BackupError::NotEmpty { .. } | BackupError::Inside { .. })) => {
            refused(StatusCode::BAD_REQUEST, &e.to_string())
        }
        Err(e) => {
            tracing::error!(error = %crate::chain(&e), "a backup failed");
            refused(StatusCode::INTERNAL_SERVER_ERROR, &crate::chain(&e))
        }
    }
}

/// Whether the folder holds this secret; then it is removed.
fn take_token(to: &Path, token: &str) -> bool {
    let file = to.join(TOKEN_FILE);
    let mut held = String::new();
    let read = std::fs::File::open(&file).and_then(|f| f.take(4096).read_to_string(&mut held));
    let same = read.is_ok() && token.len() == 2 * TOKEN_BYTES && held.trim_end() == token;
    same && std::fs::remove_file(&file).is_ok()
}

fn new_token() -> io::Result<String> {
    let mut bytes = [0; TOKEN_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// `sightline backup`.
pub async fn backup(args: &BackupArgs) -> ExitCode {
    let data_dir = std::path::absolute(&args.data_dir).unwrap_or_else(|_| args.data_dir.clone());
    let to = std::path::absolute(&args.to).unwrap_or_else(|_| args.to.clone());
    match copy(&data_dir, &to, &args.url).await {
        Ok(summary) => {
            println!(
                "copied {} rows in {} files, {} bytes, from {} to {}",
                summary.rows,
                summary.files,
                summary.bytes,
                data_dir.display(),
                to.display()
            );
            for file in &summary.damaged {
                eprintln!("error: not in the copy: {file}");
            }
            if summary.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

/// By ourselves where no server runs, else by the server.
async fn copy(data_dir: &Path, to: &Path, url: &str) -> Result<Summary, String> {
    if !data_dir.join("format").is_file() {
        return Err(format!("{} is no data directory; name one with --data-dir", data_dir.display()));
    }
    let mut config = StoreConfig::new(data_dir);
    config.background = false;
    match Store::open(config).await {
        Ok(store) => {
            let copied = store.backup(to.to_owned()).await;
            // The data directory stays as it was, its write-ahead log too.
            let closed = store.abandon().await;
            let manifest = copied.map_err(|e| crate::chain(&e))?;
            closed.map_err(|e| e.to_string())?;
            Ok(Summary::from(&manifest))
        }
        Err(OpenError::Locked { .. }) => ask_server(data_dir, to, url).await,
        Err(e) => Err(crate::chain(&e)),
    }
}

async fn ask_server(data_dir: &Path, to: &Path, url: &str) -> Result<Summary, String> {
    let wrong = |e: io::Error| format!("cannot write {}: {e}", to.display());
    std::fs::create_dir_all(to).map_err(wrong)?;
    if std::fs::read_dir(to).map_err(wrong)?.next().is_some() {
        return Err(format!("{} is not empty; give a folder that is empty or not there", to.display()));
    }
    let token = new_token().map_err(wrong)?;
    let file = to.join(TOKEN_FILE);
    write_token(&file, &token).map_err(wrong)?;
    let asked = Asked { to: to.to_owned(), token, data_dir: data_dir.to_owned() };
    let answer = post_to(&format!("{}{PATH}", url.trim_end_matches('/')), &asked).await;
    // Still there when the server did not take it.
    drop(std::fs::remove_file(&file));
    answer.map_err(|e| format!("{}, whose data this is, was asked at {url}: {e}", "the running server"))
}

fn write_token(file: &Path, token: &str) -> io::Result<()> {
    let mut out = std::fs::File::options().write(true).create_new(true).open(file)?;
    out.write_all(token.as_bytes())
}

async fn post_to(url: &str, asked: &Asked) -> Result<Summary, String> {
    let answer = reqwest::Client::new().post(url).query(asked).send().await.map_err(|e| crate::chain(&e))?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(|e| crate::chain(&e))?;
    if !status.is_success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim_end()));
    }
    serde_json::from_slice(&body).map_err(|e| format!("an answer that is none: {e}"))
}

/// `sightline restore`.
pub async fn restore_command(args: &RestoreArgs) -> ExitCode {
    match restore(&args.from, &args.data_dir).await {
        Ok(manifest) => {
            println!(
                "restored {} rows in {} files from {} to {}",
                manifest.rows(),
                manifest.files(),
                args.from.display(),
                args.data_dir.display()
            );
            for file in manifest.damaged() {
                eprintln!("note: was damaged when the backup was made and is not in it: {file}");
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {}", crate::chain(&e));
            ExitCode::FAILURE
        }
    }
}
