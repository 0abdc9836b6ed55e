//! `/loki/api/v1/delete`: a delete is done, durably, when it is answered. The list tells what was deleted since the start.

use std::{
    collections::VecDeque,
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use parking_lot::Mutex;
use storage::{
    Receipt, Store,
    model::{TenantId, TimeRange, Timestamp},
};
use tokio::sync::Semaphore;

use super::{Answer, Api, Failure, encode, json, params, read};
use crate::{
    http::{receipt, same_site},
    logql::{self, ast::Expr},
};

/// Requests that the list remembers, over all tenants; the oldest go first.
const REQUESTS_KEPT: usize = 1000;

/// Deletes at a time; more wait.
const DELETES_MAX: usize = 1;

#[derive(Clone)]
struct Deletes {
    api: Api,
    log: Arc<Log>,
}

/// `api` without the slots of queries: a delete is no reason for queries to wait.
pub(super) fn routes(store: Store) -> Router {
    let api = Api { store, limits: Arc::default(), slots: Arc::new(Semaphore::new(DELETES_MAX)) };
    Router::new()
        .route("/loki/api/v1/delete", post(delete).put(delete).get(list).delete(cancel))
        .with_state(Deletes { api, log: Arc::default() })
}

/// Deletes asked for, oldest first.
#[derive(Default)]
struct Log {
    requests: Mutex<VecDeque<Asked>>,
    next: AtomicU64,
}

struct Asked {
    tenant: TenantId,
    id: String,
    /// Nanoseconds, both inclusive.
    start: i64,
    end: i64,
    query: String,
    created: i64,
    /// `None` while it is not done.
    receipt: Option<Receipt>,
}

impl Log {
    fn begin(&self, tenant: TenantId, (start, end): (i64, i64), query: String) -> String {
        let created = params::now();
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:08x}", (created as u64 / 1_000_000).wrapping_mul(1000).wrapping_add(n) as u32);
        let mut requests = self.requests.lock();
        if requests.len() >= REQUESTS_KEPT {
            requests.pop_front();
        }
        requests.push_back(Asked { tenant, id: id.clone(), start, end, query, created, receipt: None });
        id
    }

    /// `None`: it failed, and nothing was deleted.
    fn end(&self, id: &str, receipt: Option<Receipt>) {
        let mut requests = self.requests.lock();
        match receipt {
            None => requests.retain(|r| r.id != id),
            some => requests.iter_mut().filter(|r| r.id == id).for_each(|r| r.receipt = some),
        }
    }
}

/// Ends as failed unless it is told otherwise.
struct Underway {
    log: Arc<Log>,
    id: String,
    receipt: Option<Receipt>,
}

impl Underway {
    fn done(mut self, receipt: Receipt) {
        self.receipt = Some(receipt);
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.log.end(&self.id, self.receipt);
    }
}

fn foreign(request: &Request) -> Result<(), Failure> {
    if same_site::is_foreign(request.headers()) {
        return Err(Failure {
            status: StatusCode::FORBIDDEN,
            text: "a page of another site may not delete; ask from a program or a page of this server".into(),
        });
    }
    Ok(())
}

async fn delete(State(deletes): State<Deletes>, request: Request) -> Answer {
    foreign(&request)?;
    let (tenant, params, _) = read(request).await?;
    if params.query().is_empty() {
        return Err(Failure::bad("query not set"));
    }
    let Expr::Log(query) = logql::parse(params.query())? else {
        return Err(Failure::bad(
            "unsupported query expression: a delete takes a selector and filters, no metric query",
        ));
    };
    logql::check_matchers(&query.matchers)?;
    if params.get("start").is_none() {
        return Err(Failure::bad("start time not set"));
    }
    let (start, end) = params.range(0)?;
    // After the range, whose end is now where none is given.
    if end > params::now() {
        return Err(Failure::bad("deletes in the future are not allowed"));
    }
    let Some(range) = TimeRange::new(Timestamp(start), Timestamp(end.saturating_add(1))) else {
        return Err(Failure::bad("start time can't be greater than end time"));
    };
    let id = deletes.log.begin(tenant.clone(), (start, end), params.query().to_owned());
    let underway = Underway { log: deletes.log, id, receipt: None };
    // Goes on to its end when the asker has left.
    let (receipt, _) = deletes
        .api
        .run(tenant, move |ctx| {
            Box::pin(async move {
                let receipt = match logql::deletion(ctx, &query, range).await? {
                    None => Receipt::default(),
                    Some(request) => ctx.store.delete(request).await?,
                };
                underway.done(receipt);
                Ok(receipt)
            })
        })
        .await?;
    Ok(receipt::no_content(receipt))
}

async fn list(State(deletes): State<Deletes>, request: Request) -> Answer {
    let (tenant, _, _) = read(request).await?;
    let mut out = String::from("[");
    for r in deletes.log.requests.lock().iter().filter(|r| r.tenant == tenant) {
        if out.len() > 1 {
            out.push(',');
        }
        let status = if r.receipt.is_some() { "processed" } else { "received" };
        let _ = write!(out, "{{\"request_id\":\"{}\",\"start_time\":{},", r.id, Seconds(r.start));
        let _ = write!(out, "\"end_time\":{},\"query\":", Seconds(r.end));
        encode::string(&mut out, &r.query);
        let _ = write!(out, ",\"status\":\"{status}\",\"created_at\":{}", Seconds(r.created));
        if let Some(done) = r.receipt {
            out.push_str(",\"deleted\":");
            receipt::write(&mut out, done);
        }
        out.push('}');
    }
    out.push(']');
    Ok(json(out))
}

/// Nanoseconds, written as Unix seconds with up to three decimals.
struct Seconds(i64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, millis) = (self.0.div_euclid(1_000_000_000), self.0.rem_euclid(1_000_000_000) / 1_000_000);
        if millis == 0 { write!(f, "{seconds}") } else { write!(f, "{seconds}.{millis:03}") }
    }
}

/// What is deleted does not come back; with `force` the request leaves the list.
async fn cancel(State(deletes): State<Deletes>, request: Request) -> Answer {
    foreign(&request)?;
    let (tenant, params, _) = read(request).await?;
    let Some(id) = params.get("request_id") else {
        return Err(Failure::bad("request_id not set"));
    };
    let force = params.get("force") == Some("true");
    let mut requests = deletes.log.requests.lock();
    let Some(at) = requests.iter().position(|r| r.tenant == tenant && r.id == id) else {
        return Err(Failure {
            status: StatusCode::NOT_FOUND,
            text: "could not find delete request with given id".into(),
        });
    };
    if requests[at].receipt.is_none() || !force {
        return Err(Failure::bad("deletion of request which is in process or already processed is not allowed"));
    }
    requests.remove(at);
    Ok(gone())
}

fn gone() -> Response {
    StatusCode::NO_CONTENT.into_response()
}
