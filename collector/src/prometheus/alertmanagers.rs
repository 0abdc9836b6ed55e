//! The Alertmanagers that a Prometheus file names: where they are, and how to speak with them.
//!
//! **For** finding them as targets are found. **Not for** alerts: whoever has some tells them to what is found here.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use pipeline::transform::relabel::Rule;
use storage::model::Labels;
use tokio::task::JoinSet;

use super::{
    client::HttpClient,
    config::{AlertingConfig, AlertmanagerConfig, HttpConfig, Scheme},
    counters::Counters,
    discovery::{Discovery, Feed, Publisher},
    job::{Findings, http, rules, unsupported_discoveries},
};

/// What an Alertmanager's API is at. Source: Prometheus.
const ALERTS_PATH: &str = "/api/v2/alerts";
const TIMEOUT: Duration = Duration::from_secs(10);
/// What changes within this time is taken up at once.
const SETTLE: Duration = Duration::from_millis(100);

/// The section `alerting`, checked.
#[derive(Default)]
pub struct Alerting {
    /// What becomes of the labels of every alert.
    pub relabel: Vec<Rule>,
    pub fleets: Vec<Arc<Fleet>>,
}

/// Alertmanagers that are found and told alike.
pub struct Fleet {
    pub timeout: Duration,
    /// What becomes of an alert's labels on the way to these, after [`Alerting::relabel`].
    pub alert_relabel: Vec<Rule>,
    scheme: Scheme,
    path_prefix: String,
    relabel: Vec<Rule>,
    http: HttpConfig,
    discovery: Vec<Discovery>,
}

pub(super) fn check(config: &AlertingConfig, folder: &Path, at: &mut Findings<'_>) -> Alerting {
    let relabel = rules(&config.alert_relabel_configs, "alert_relabel_configs", at);
    let fleets = config.alertmanagers.iter().enumerate();
    let fleets = fleets.map(|(i, c)| Arc::new(fleet(c, folder, &mut at.below(&format!("alertmanagers[{i}]")))));
    Alerting { relabel, fleets: fleets.collect() }
}

fn fleet(config: &AlertmanagerConfig, folder: &Path, at: &mut Findings<'_>) -> Fleet {
    let instead = ": these Alertmanagers are not told; file_sd_configs or http_sd_configs can name them";
    unsupported_discoveries(&config.unsupported_discoveries(), instead, at);
    at.unsupported("sigv4", config.sigv4.is_some(), ": these Alertmanagers are told without a signature");
    match config.api_version.as_deref() {
        None | Some("v2") => {}
        Some(other) => at.error("api_version", format!("version `{other}` is not supported, expected v2")),
    }
    let timeout = config.timeout.map_or(TIMEOUT, |s| s.0);
    if timeout.is_zero() {
        at.error("timeout", "is 0; expected more");
    }
    Fleet {
        timeout,
        alert_relabel: rules(&config.alert_relabel_configs, "alert_relabel_configs", at),
        scheme: config.scheme,
        path_prefix: config.path_prefix.clone().unwrap_or_default(),
        relabel: rules(&config.relabel_configs, "relabel_configs", at),
        http: http(config.http(), folder, at),
        discovery: Discovery::of(config.discoveries(), folder, at),
    }
}

impl Fleet {
    /// What requests are sent with. Reads certificates: blocks.
    pub fn client(&self) -> Result<HttpClient, String> {
        HttpClient::new(&self.http, Some(self.timeout))
    }

    /// Tells all of them whenever they change, as addresses below which `/api/v2` is. Ends when it is dropped.
    pub async fn watch(self: Arc<Self>, counters: Arc<Counters>, mut tell: impl FnMut(BTreeSet<String>)) {
        let feed = Arc::new(Feed::new(self.discovery.len()));
        let mut discoveries = JoinSet::new();
        for (i, discovery) in self.discovery.iter().enumerate() {
            let publisher = Publisher::new(feed.clone(), i, "alertmanagers", counters.clone());
            let discovery = discovery.clone();
            discoveries.spawn(async move { discovery.run(publisher).await });
        }
        loop {
            tokio::select! {
                () = feed.changed() => {
                    tokio::time::sleep(SETTLE).await;
                    let groups = feed.groups();
                    let found = groups.iter().flat_map(|g| g.iter()).flat_map(|group| {
                        group.targets.iter().map(|own| {
                            let mut labels = group.labels.clone();
                            own.iter().for_each(|(name, value)| labels.set(name, value));
                            labels
                        })
                    });
                    tell(found.filter_map(|labels| self.address(labels)).collect());
                }
                Some(Err(e)) = discoveries.join_next(), if !discoveries.is_empty() => {
                    tracing::error!(error = %e, "a discovery panicked; its Alertmanagers stay as they are");
                }
            }
        }
    }

    /// Where one is; `None`: relabelling dropped it, or it is nowhere.
    fn address(&self, mut labels: Labels) -> Option<String> {
        labels.set("__scheme__", self.scheme.name());
        let path = format!("/{}", self.path_prefix.trim_matches('/'));
        labels.set("__alerts_path__", format!("{}{ALERTS_PATH}", path.trim_end_matches('/')));
        if !self.relabel.iter().all(|rule| rule.apply(&mut labels)) {
            return None;
        }
        let (scheme, path) = (labels.get("__scheme__")?, labels.get("__alerts_path__")?);
        let address = labels.get("__address__").filter(|a| !a.is_empty())?;
        let Some(prefix) = path.strip_suffix(ALERTS_PATH) else {
            tracing::warn!(address, path, "an Alertmanager whose path does not end in {ALERTS_PATH} is not told");
            return None;
        };
        let url = format!("{scheme}://{address}{prefix}");
        match url::Url::parse(&url) {
            Ok(_) => Some(url),
            Err(e) => {
                tracing::warn!(url, error = %e, "an Alertmanager that has no address is not told");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prometheus::{config::File, job};

    fn alerting(text: &str) -> job::Checked {
        let document = crate::yaml::Document::parse(text).unwrap();
        let file: File = serde_json::from_value(document.value.clone()).unwrap();
        job::check(&file, Path::new("/etc/p"))
    }

    #[tokio::test]
    async fn alertmanagers_are_found_and_relabelled_as_targets_are() {
        let checked = alerting(
            "alerting:\n  alertmanagers:\n  - scheme: https\n    path_prefix: /am/\n    static_configs:\n    - targets: ['a:1', b, 'c:3']\n    \
             relabel_configs:\n    - {source_labels: [__address__], regex: 'c.*', action: drop}\n    \
             - {source_labels: [__address__], regex: b, target_label: __scheme__, replacement: http}\n",
        );
        assert!(checked.errors.is_empty() && checked.unsupported.is_empty(), "{:?}", checked.errors);
        let fleet = checked.alerting.fleets[0].clone();
        let (told, mut found) = tokio::sync::mpsc::unbounded_channel();
        let watch = fleet.watch(Arc::default(), move |all| drop(told.send(all)));
        let all = tokio::select! {
            () = watch => unreachable!("it goes on"),
            all = found.recv() => all.unwrap(),
        };
        assert_eq!(all.into_iter().collect::<Vec<_>>(), ["http://b/am", "https://a:1/am"]);
    }

    #[test]
    fn what_is_not_done_for_alertmanagers_is_named() {
        let checked = alerting(
            "alerting:\n  alertmanagers:\n  - {api_version: v1, timeout: 0s, sigv4: {}, consul_sd_configs: [], basic_auth: {username_ref: x}}\n",
        );
        let paths = |found: &[job::Finding]| found.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
        let below = |key: &str| format!("alerting.alertmanagers[0].{key}");
        assert_eq!(paths(&checked.errors), [below("api_version"), below("timeout")]);
        let named = [below("consul_sd_configs"), below("sigv4"), below("basic_auth.username_ref")];
        assert_eq!(paths(&checked.unsupported), named);
    }
}
