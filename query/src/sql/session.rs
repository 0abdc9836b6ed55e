//! Runs a query: on threads of its own, under a memory pool, a deadline and limits, into the bytes of an encoder.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arrow::{array::RecordBatch, datatypes::SchemaRef, error::ArrowError};
use bytes::Bytes;
use datafusion::{
    catalog::{
        CatalogProvider as _, CatalogProviderList as _, MemoryCatalogProvider, MemoryCatalogProviderList,
        MemorySchemaProvider, SchemaProvider as _,
    },
    common::DataFusionError,
    execution::{
        SessionState, SessionStateBuilder,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::GreedyMemoryPool,
        runtime_env::RuntimeEnvBuilder,
    },
    logical_expr::registry::FunctionRegistry as _,
    physical_plan::execute_stream,
    prelude::{SQLOptions, SessionConfig},
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use storage::{
    ScanError, ScanStats, Store,
    model::{TenantId, TimeRange},
};
use tokio::{
    runtime::Runtime,
    sync::{Semaphore, mpsc},
};
use tokio_util::task::TaskTracker;

use super::{
    check, columns, functions,
    rewrite::{CountBesideScan, FirstBesideScan},
    table::SqlTable,
};
use crate::{
    error::QueryError,
    fragment::Door,
    limits::{
        Limits, SQL_ANSWER_BYTES_MAX, SQL_CONCURRENT_MAX, SQL_MEMORY_BYTES_MAX, SQL_QUEUE_PIECES, SQL_ROWS_MAX,
        SQL_STACK_BYTES,
    },
};

const CATALOG: &str = "sightline";
const SCHEMA: &str = "public";

/// How long after its deadline a query that does not yield is waited for.
const GRACE: Duration = Duration::from_secs(1);

/// One query.
#[derive(Clone, Debug)]
pub struct SqlRequest {
    pub query: String,
    /// On the time column of every table the query names; of `metric_series`, on the life of a series.
    pub within: TimeRange,
    /// Rows of the answer, which is cut behind them.
    pub limit: Option<usize>,
    /// Shorter than the engine's, or none of its own.
    pub timeout: Option<Duration>,
    /// Read everything and rewrite nothing: what answers are compared with.
    pub plain: bool,
}

impl SqlRequest {
    pub fn new(query: impl Into<String>) -> Self {
        SqlRequest { query: query.into(), within: TimeRange::ALL, limit: None, timeout: None, plain: false }
    }
}

/// Why there is no answer, and where in the text.
#[derive(Clone, Debug)]
pub struct SqlError {
    pub error: QueryError,
    /// Line and column, from 1.
    pub position: Option<(u64, u64)>,
}

impl SqlError {
    pub(super) fn bad(text: impl Into<String>) -> Self {
        QueryError::BadData(text.into()).into()
    }

    pub(super) fn at(self, position: Option<(u64, u64)>) -> Self {
        SqlError { position, ..self }
    }

    pub(super) fn of_datafusion(e: &DataFusionError) -> Self {
        let span = e.diagnostic().and_then(|d| d.span);
        let position = span.filter(|s| s.start.line > 0).map(|s| (s.start.line, s.start.column));
        let error = match e.find_root() {
            DataFusionError::SQL(e, _) => return check::parser_error(e),
            DataFusionError::Collection(all) if !all.is_empty() => return Self::of_datafusion(&all[0]),
            DataFusionError::Shared(e) => return Self::of_datafusion(e),
            DataFusionError::Diagnostic(_, e) => return Self { position, ..Self::of_datafusion(e) },
            root @ (DataFusionError::Plan(_)
            | DataFusionError::SchemaError(..)
            | DataFusionError::Configuration(_)) => {
                QueryError::BadData(root.message().replace(&format!("{CATALOG}.{SCHEMA}."), ""))
            }
            root @ (DataFusionError::NotImplemented(_)
            | DataFusionError::Execution(_)
            | DataFusionError::ArrowError(..)) => QueryError::Execution(root.message().into_owned()),
            DataFusionError::ResourcesExhausted(what) => QueryError::TooLarge(format!(
                "the query needs more memory than is left of the {SQL_MEMORY_BYTES_MAX} bytes that SQL queries share; \
                 narrow its time range, group by less or sort fewer columns: {what}"
            )),
            DataFusionError::External(inner) => match inner.downcast_ref::<ScanError>() {
                Some(ScanError::Invalid(text)) => QueryError::Execution(text.clone()),
                Some(scan) => QueryError::Storage(scan.clone()),
                None => QueryError::Internal(inner.to_string()),
            },
            other => QueryError::Internal(other.to_string()),
        };
        SqlError { error, position }
    }
}

impl From<QueryError> for SqlError {
    fn from(error: QueryError) -> Self {
        SqlError { error, position: None }
    }
}

impl From<DataFusionError> for SqlError {
    fn from(e: DataFusionError) -> Self {
        Self::of_datafusion(&e)
    }
}

impl From<ArrowError> for SqlError {
    fn from(e: ArrowError) -> Self {
        QueryError::Internal(e.to_string()).into()
    }
}

/// What an answer took.
#[derive(Clone, Debug, Default)]
pub struct SqlStats {
    /// Of the answer.
    pub rows: u64,
    /// The answer was cut at the request's limit.
    pub truncated: bool,
    pub rows_scanned: u64,
    /// Decoded bytes of the rows scanned.
    pub bytes_scanned: u64,
    /// Bytes fetched from files.
    pub bytes_read: u64,
    pub parts: u64,
    pub parts_pruned: u64,
    pub row_groups: u64,
    pub row_groups_pruned: u64,
    /// Parts that could not be read and are missing in the answer.
    pub damaged: u64,
    pub elapsed: Duration,
}

impl SqlStats {
    fn add(&mut self, scan: &ScanStats) {
        for (sum, counter) in [
            (&mut self.rows_scanned, &scan.rows_scanned),
            (&mut self.bytes_scanned, &scan.bytes_scanned),
            (&mut self.bytes_read, &scan.bytes_read),
            (&mut self.parts, &scan.parts),
            (&mut self.parts_pruned, &scan.parts_pruned),
            (&mut self.row_groups, &scan.row_groups),
            (&mut self.row_groups_pruned, &scan.row_groups_pruned),
            (&mut self.damaged, &scan.damaged),
        ] {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
}

/// Turns batches into an answer's bytes, on the query's own threads.
pub trait Encoder: Send {
    fn begin(&mut self, schema: &SchemaRef) -> Result<Bytes, SqlError>;
    fn rows(&mut self, batch: &RecordBatch) -> Result<Bytes, SqlError>;
    fn end(&mut self, stats: &SqlStats) -> Result<Bytes, SqlError>;
}

/// A piece of an answer. [`Piece::End`] is the last one.
#[derive(Debug)]
pub enum Piece {
    Bytes(Bytes),
    End(SqlStats),
}

/// An answer on its way; dropping it ends the query.
pub struct Answer {
    pieces: mpsc::Receiver<Result<Piece, SqlError>>,
    deadline: Instant,
}

impl Answer {
    /// The next piece; nothing follows an error or the end.
    pub async fn next(&mut self) -> Option<Result<Piece, SqlError>> {
        let deadline = tokio::time::Instant::from_std(self.deadline + GRACE);
        match tokio::time::timeout_at(deadline, self.pieces.recv()).await {
            Ok(piece) => piece,
            Err(_) => {
                self.pieces.close();
                Some(Err(QueryError::Timeout("SQL query").into()))
            }
        }
    }
}

/// Runs queries. Clones share it.
#[derive(Clone)]
pub struct SqlEngine {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    limits: Limits,
    slots: Semaphore,
    tasks: TaskTracker,
    /// Made with the first query.
    threads: Mutex<Option<Arc<Threads>>>,
}

/// Threads that queries work on, and the session all their sessions start as.
struct Threads {
    runtime: Option<Runtime>,
    session: SessionState,
    plain_session: SessionState,
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waiting for them is not allowed where this may be dropped; their queries end with their readers.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Threads {
    fn start() -> Result<Self, SqlError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores)
            .thread_name("sql")
            .thread_stack_size(SQL_STACK_BYTES)
            .enable_time()
            .build()
            .map_err(|e| QueryError::Internal(format!("cannot start the threads for SQL: {e}")))?;
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(SQL_MEMORY_BYTES_MAX)))
            // What does not fit is refused, not written somewhere.
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()?;
        let mut config = SessionConfig::new()
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            .with_target_partitions(cores);
        let options = config.options_mut();
        options.execution.time_zone = Some("+00:00".to_owned());
        options.sql_parser.collect_spans = true;
        let base = || {
            let builder = SessionStateBuilder::new().with_config(config.clone()).with_default_features();
            builder.with_runtime_env(environment.clone())
        };
        let ours = |builder: SessionStateBuilder| -> Result<SessionState, SqlError> {
            let mut state = builder.build();
            for function in functions::all() {
                state.register_udf(function)?;
            }
            Ok(state)
        };
        let rewrites =
            base().with_optimizer_rule(Arc::new(CountBesideScan)).with_optimizer_rule(Arc::new(FirstBesideScan));
        Ok(Threads { runtime: Some(runtime), session: ours(rewrites)?, plain_session: ours(base())? })
    }
}

impl SqlEngine {
    pub fn new(store: Store, limits: Limits) -> Self {
        let slots = Semaphore::new(SQL_CONCURRENT_MAX);
        SqlEngine {
            inner: Arc::new(Inner { store, limits, slots, tasks: TaskTracker::new(), threads: Mutex::new(None) }),
        }
    }

    /// Starts a query; its answer comes piece by piece.
    pub fn run(&self, tenant: TenantId, request: SqlRequest, encoder: Box<dyn Encoder>) -> Result<Answer, SqlError> {
        let threads = {
            let mut held = self.inner.threads.lock();
            match held.as_ref() {
                Some(threads) => threads.clone(),
                None => held.insert(Arc::new(Threads::start()?)).clone(),
            }
        };
        let Some(handle) = threads.runtime.as_ref().map(|r| r.handle().clone()) else {
            return Err(QueryError::Canceled("SQL query").into());
        };
        let (sender, pieces) = mpsc::channel(SQL_QUEUE_PIECES);
        let limit = self.inner.limits.timeout;
        let deadline = Instant::now() + request.timeout.map_or(limit, |t| t.min(limit));
        let inner = self.inner.clone();
        let tasks = inner.tasks.clone();
        // The session and not the threads themselves: a thread must not be who drops the last of them.
        let session = if request.plain { threads.plain_session.clone() } else { threads.session.clone() };
        let work = async move {
            let query = inner.query(session, tenant, request, encoder, &sender);
            let ended = tokio::select! {
                () = sender.closed() => return,
                ended = tokio::time::timeout_at(tokio::time::Instant::from_std(deadline), query) => ended,
            };
            let failed = match ended {
                Ok(Ok(())) => return,
                Ok(Err(e)) => e,
                Err(_) => QueryError::Timeout("SQL query").into(),
            };
            let _ = sender.send(Err(failed)).await;
        };
        drop(tasks.spawn_on(work, &handle));
        Ok(Answer { pieces, deadline })
    }
}

impl Inner {
    async fn query(
        &self,
        mut session: SessionState,
        tenant: TenantId,
        request: SqlRequest,
        mut encoder: Box<dyn Encoder>,
        out: &mpsc::Sender<Result<Piece, SqlError>>,
    ) -> Result<(), SqlError> {
        let began = Instant::now();
        let _slot = self.slots.acquire().await.map_err(|_| QueryError::Canceled("SQL query"))?;
        let statement = check::statement(&request.query)?;
        let door = Door { store: self.store.clone(), tenant, limits: self.limits.clone(), costs: Arc::default() };
        session.register_catalog_list(tables(&door, &request)?);
        session.mark_start_execution();
        let plan = session.statement_to_plan(statement).await?;
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)?;
        let plan = session.create_physical_plan(&plan).await?;
        let mut batches = execute_stream(plan, session.task_ctx())?;
        let mut stats = SqlStats::default();
        let mut sent = 0usize;
        let mut bytes = encoder.begin(&batches.schema())?;
        loop {
            sent = sent.saturating_add(bytes.len());
            if sent > SQL_ANSWER_BYTES_MAX {
                return Err(QueryError::TooLarge(format!(
                    "the answer has more than the limit of {SQL_ANSWER_BYTES_MAX} bytes; select less"
                ))
                .into());
            }
            if !bytes.is_empty() && out.send(Ok(Piece::Bytes(bytes))).await.is_err() {
                return Ok(());
            }
            let Some(mut batch) = batches.next().await.transpose()? else { break };
            if let Some(limit) = request.limit {
                let left = limit - stats.rows as usize;
                stats.truncated = batch.num_rows() > left;
                batch = batch.slice(0, batch.num_rows().min(left));
            }
            stats.rows += batch.num_rows() as u64;
            if request.limit.is_none() && stats.rows > SQL_ROWS_MAX as u64 {
                return Err(QueryError::TooLarge(format!(
                    "the answer has more than the limit of {SQL_ROWS_MAX} rows; add a LIMIT or give \"limit\""
                ))
                .into());
            }
            bytes = if batch.num_rows() > 0 { encoder.rows(&batch)? } else { Bytes::new() };
            if stats.truncated {
                if !bytes.is_empty() && out.send(Ok(Piece::Bytes(bytes))).await.is_err() {
                    return Ok(());
                }
                break;
            }
        }
        drop(batches);
        door.costs.lock().iter().for_each(|scan| stats.add(scan));
        stats.elapsed = began.elapsed();
        let last = encoder.end(&stats)?;
        if out.send(Ok(Piece::Bytes(last))).await.is_ok() {
            let _ = out.send(Ok(Piece::End(stats))).await;
        }
        Ok(())
    }
}

/// All that a query of this tenant can name.
fn tables(door: &Door, request: &SqlRequest) -> Result<Arc<MemoryCatalogProviderList>, SqlError> {
    let schema = MemorySchemaProvider::new();
    for relation in columns::relations() {
        let table = SqlTable {
            relation,
            door: door.clone(),
            within: request.within,
            counted: None,
            first: None,
            narrows: !request.plain,
        };
        schema.register_table(relation.name.to_owned(), Arc::new(table))?;
    }
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(SCHEMA, Arc::new(schema))?;
    let list = MemoryCatalogProviderList::new();
    list.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
    Ok(Arc::new(list))
}
