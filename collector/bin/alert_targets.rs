//! Joins the Alertmanagers that configurations name with the ruler that tells them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use collector::prometheus::{
    alertmanagers::{Alerting, Fleet},
    client::HttpClient,
};
use parking_lot::Mutex;
use pipeline::transform::relabel::Rule;
use query::rules::{
    notify::{Alertmanager, Credentials, Post, Relabel},
    ruler::Ruler,
};
use storage::model::Labels;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::config::rules::Checked;

/// What several discoveries tell within this time is taken up at once.
const SETTLE: Duration = Duration::from_millis(200);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// Whom alerts are told: Alertmanagers of our own configuration, and those to be found.
#[derive(Default)]
pub struct Told {
    own: Vec<Alertmanager>,
    fleets: Vec<ToFind>,
}

/// Alertmanagers to be found, and how they are told.
struct ToFind {
    fleet: Arc<Fleet>,
    via: Arc<dyn Post>,
    relabel: Option<Relabel>,
}

/// Takes what is told of out of a configuration. Reads certificates: blocks.
pub fn prepare(checked: &mut Checked) -> Result<Told, String> {
    let mut out = Told { own: checked.alertmanagers.clone(), fleets: Vec::new() };
    for Alerting { relabel, fleets } in std::mem::take(&mut checked.alerting) {
        let all: Arc<[Rule]> = relabel.into();
        for (i, fleet) in fleets.into_iter().enumerate() {
            let client = fleet.client().map_err(|e| format!("alerting.alertmanagers[{i}]: {e}"))?;
            let relabel = (!all.is_empty() || !fleet.alert_relabel.is_empty()).then(|| {
                let (all, fleet) = (all.clone(), fleet.clone());
                let change = move |labels: &mut Labels| {
                    all.iter().chain(&fleet.alert_relabel).all(|rule: &Rule| rule.apply(labels))
                };
                Arc::new(change) as Relabel
            });
            out.fleets.push(ToFind { fleet, via: Arc::new(Via(client)), relabel });
        }
    }
    Ok(out)
}

/// The client of the scraper, with all that Prometheus' configuration says of it.
struct Via(HttpClient);

#[async_trait::async_trait]
impl Post for Via {
    async fn post(&self, url: &str, body: Vec<u8>) -> Result<(u16, String), String> {
        let mut answer = self.0.post_json(url, body).await?;
        let mut text = Vec::new();
        while text.len() < ANSWER_BYTES_MAX
            && let Ok(Some(chunk)) = answer.chunk().await
        {
            text.extend_from_slice(&chunk);
        }
        text.truncate(ANSWER_BYTES_MAX);
        Ok((answer.status().as_u16(), String::from_utf8_lossy(&text).into_owned()))
    }
}

/// Keeps the ruler told whom to tell, until it is dropped.
pub async fn keep(ruler: Ruler, mut told: watch::Receiver<Arc<Told>>) {
    // Those of our own configuration are known to the ruler from its start.
    let mut first = true;
    loop {
        let now = told.borrow_and_update().clone();
        if now.fleets.is_empty() && !first {
            ruler.set_alertmanagers(now.own.clone()).await;
        }
        first = false;
        let found: Arc<Mutex<Vec<BTreeSet<String>>>> = Arc::new(Mutex::new(vec![BTreeSet::new(); now.fleets.len()]));
        let news = Arc::new(Notify::new());
        let mut watches = JoinSet::new();
        for (i, ToFind { fleet, .. }) in now.fleets.iter().enumerate() {
            let (found, news) = (found.clone(), news.clone());
            watches.spawn(fleet.clone().watch(Arc::default(), move |all| {
                found.lock()[i] = all;
                news.notify_one();
            }));
        }
        loop {
            tokio::select! {
                changed = told.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = news.notified() => {
                    tokio::time::sleep(SETTLE).await;
                    let found = found.lock().clone();
                    ruler.set_alertmanagers(all(&now, &found)).await;
                }
                Some(Err(e)) = watches.join_next(), if !watches.is_empty() => {
                    tracing::error!(error = %e, "looking for Alertmanagers panicked; those known before stay");
                }
            }
        }
    }
}

/// Every Alertmanager once.
fn all(told: &Told, found: &[BTreeSet<String>]) -> Vec<Alertmanager> {
    let mut out = told.own.clone();
    let mut known: BTreeSet<String> = out.iter().map(Alertmanager::alerts_url).collect();
    for (ToFind { fleet, via, relabel }, urls) in told.fleets.iter().zip(found) {
        for url in urls.iter().filter_map(|url| url::Url::parse(url).ok()) {
            let (via, relabel) = (Some(via.clone()), relabel.clone());
            let one = Alertmanager { url, timeout: fleet.timeout, credentials: Credentials::None, via, relabel };
            if known.insert(one.alerts_url()) {
                out.push(one);
            }
        }
    }
    out
}
