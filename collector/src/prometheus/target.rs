//! One target: from the labels of its discovery to an address, its labels and when to ask.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use storage::model::Labels;
use url::form_urlencoded;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    config::Span,
    job::{Job, target_times},
};

/// What a target was found to be when last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Unknown,
    Up,
    Down,
}

impl Health {
    pub const fn name(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Up => "up",
            Health::Down => "down",
        }
    }
}

/// How the last scrape went.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub health: Health,
    /// Empty: none.
    pub last_error: String,
    pub last_scrape: Option<SystemTime>,
    pub last_duration: Duration,
}

/// A family of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub metric_type: &'static str,
    pub help: String,
    pub unit: String,
}

pub struct Target {
    /// With `job` and `instance`, without those that begin with `__`.
    pub labels: Labels,
    pub url: String,
    pub interval: Duration,
    pub timeout: Duration,
    /// Tells this target from others of its job.
    pub id: u64,
    /// Its labels before relabelling.
    pub discovered: Mutex<Labels>,
    pub status: Mutex<Status>,
    /// Families seen, by name.
    pub families: Mutex<BTreeMap<String, Told>>,
}

/// What became of discovered labels.
pub enum Populated {
    Target(Box<Target>),
    /// Relabelling dropped it.
    Dropped,
    /// It makes no target.
    Invalid(String),
}

/// What a job adds to the labels of a discovered target before relabelling.
pub fn with_defaults(job: &Job, mut labels: Labels) -> Labels {
    let mut default = |name: &str, value: &str| {
        if labels.get(name).is_none() {
            labels.set(name, value);
        }
    };
    default("job", &job.name);
    default("__scrape_interval__", &Span(job.interval).to_string());
    default("__scrape_timeout__", &Span(job.timeout).to_string());
    default("__metrics_path__", &job.metrics_path);
    default("__scheme__", job.scheme.name());
    for (name, values) in &job.params {
        if let Some(first) = values.first() {
            labels.set(&format!("__param_{name}"), first.as_str());
        }
    }
    labels
}

/// `discovered`: [`with_defaults`].
pub fn populate(job: &Job, discovered: &Labels) -> Populated {
    let mut labels = discovered.clone();
    if !job.relabel.iter().all(|rule| rule.apply(&mut labels)) {
        return Populated::Dropped;
    }
    let Some(address) = labels.get("__address__").map(str::to_owned) else {
        return Populated::Invalid("the target has no address".to_owned());
    };
    if address.contains('/') {
        return Populated::Invalid(format!("{address:?} is not a valid hostname"));
    }
    let times = target_times(
        labels.get("__scrape_interval__").unwrap_or_default(),
        labels.get("__scrape_timeout__").unwrap_or_default(),
    );
    let (interval, timeout) = match times {
        Ok(times) => times,
        Err(e) => return Populated::Invalid(e),
    };
    if labels.get("instance").is_none() {
        labels.set("instance", address.as_str());
    }
    let url = url_of(job, &labels, &address);
    if let Err(e) = url::Url::parse(&url) {
        return Populated::Invalid(format!("{url:?} is not an address: {e}"));
    }
    let public: Labels = labels.iter().filter(|(n, _)| !n.starts_with("__")).collect();
    let id = xxh3_64(format!("{}\n{url}\n{interval:?}\n{timeout:?}", public.to_json()).as_bytes());
    Populated::Target(Box::new(Target {
        labels: public,
        url,
        interval,
        timeout,
        id,
        discovered: Mutex::new(discovered.clone()),
        status: Mutex::default(),
        families: Mutex::default(),
    }))
}

fn url_of(job: &Job, labels: &Labels, address: &str) -> String {
    let mut params: BTreeMap<&str, Vec<&str>> =
        job.params.iter().map(|(k, v)| (k.as_str(), v.iter().map(String::as_str).collect())).collect();
    for (name, value) in labels.iter() {
        let Some(name) = name.strip_prefix("__param_") else { continue };
        let values = params.entry(name).or_default();
        match values.first_mut() {
            Some(first) => *first = value,
            None => values.push(value),
        }
    }
    let scheme = labels.get("__scheme__").unwrap_or("http");
    let path = labels.get("__metrics_path__").unwrap_or("/metrics");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut url = format!("{scheme}://{address}{slash}{path}");
    if params.values().any(|v| !v.is_empty()) {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, values) in &params {
            for value in values {
                query.append_pair(name, value);
            }
        }
        url.push(if path.contains('?') { '&' } else { '?' });
        url.push_str(&query.finish());
    }
    url
}

/// Nanoseconds after `now_ns` at which a target is asked first: its own place in the interval, whenever we start, spread
/// evenly over targets and, by `seed`, over servers.
pub fn offset(id: u64, seed: u64, interval: Duration, now_ns: u64) -> Duration {
    let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
    let base = interval - now_ns % interval;
    let next = base + (id ^ seed) % interval;
    Duration::from_nanos(if next > interval { next - interval } else { next })
}
