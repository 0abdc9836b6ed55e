//! All groups at work: loads rule files and looks for changes, runs each group on its schedule, keeps its state, and shows
//! how everything stands.
//!
//! A bad file changes nothing: the rules in force stay, and the fault is in the log, in a metric and in the answer to
//! whoever asked for the reload.

mod sources;
mod work;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::RwLock;
use storage::{
    Store,
    metrics::MetricLine,
    model::{Labels, TenantId},
    vfs::Clock,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::sources::{Discover, RuleSource, load};
use self::{
    sources::{Loaded, Seen, seen},
    work::Work,
};
use super::{
    alerting::{Alert, AlertState},
    file::{FileError, Rule, RuleGroup},
    group::{Counts, Group, Health, Schedule, Site},
    notify::{Alertmanager, Desk, Notice, Notifier, NotifySettings},
    state::StateFile,
};
use crate::promql::Engine;

/// How often rule files are looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often new samples are taken over into memory: a head is flushed after two quiet seconds at the earliest.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

/// Reloads that may wait for their turn.
const RELOADS_WAITING: usize = 8;

/// What the ruler is told.
#[derive(Clone, Default)]
pub struct RulerSettings {
    pub sources: Vec<RuleSource>,
    /// Of groups that name no interval.
    pub interval: Duration,
    pub external_labels: Labels,
    /// Where this process is reached from outside, without a slash at its end.
    pub external_url: String,
    /// Where the state of alerts is kept.
    pub state_dir: PathBuf,
    pub notify: NotifySettings,
}

/// How a group stands, as the API shows it.
#[derive(Clone, Debug)]
pub struct GroupView {
    pub key: String,
    pub tenant: TenantId,
    pub file: Arc<str>,
    pub definition: Arc<RuleGroup>,
    pub interval_ms: i64,
    pub seconds: f64,
    pub last_ms: Option<i64>,
    pub rules: Vec<RuleView>,
    counts: Counts,
}

#[derive(Clone, Debug)]
pub struct RuleView {
    pub rule: Arc<Rule>,
    pub health: Health,
    pub seconds: f64,
    pub last_ms: Option<i64>,
    pub state: AlertState,
    /// Pending and firing ones.
    pub alerts: Vec<Alert>,
}

/// A handle on the rules. Clones share them.
#[derive(Clone)]
pub struct Ruler(Arc<Inner>);

impl std::fmt::Debug for Ruler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ruler").field("sources", &self.0.settings().sources).finish_non_exhaustive()
    }
}

/// Tenant, file and name of a group.
type GroupKey = (TenantId, Arc<str>, String);

struct Inner {
    settings: RwLock<Arc<RulerSettings>>,
    engine: Engine,
    store: Store,
    clock: Arc<dyn Clock>,
    discover: Discover,
    notifier: Notifier,
    views: RwLock<BTreeMap<GroupKey, Arc<GroupView>>>,
    reloads: AtomicU64,
    reloads_failed: AtomicU64,
    in_force_is_latest: AtomicBool,
    state_failures: AtomicU64,
    requests: mpsc::Sender<Request>,
}

/// Groups now in force, or why the former stay.
type Reloaded = Result<usize, Vec<FileError>>;

/// What the owner of the groups is asked.
enum Request {
    /// To read the files again, those of other settings if there are any.
    Reload(Option<Box<RulerSettings>>, oneshot::Sender<Reloaded>),
    /// To tell these from now on.
    Alertmanagers(Vec<Alertmanager>),
}

/// The ruler's tasks.
pub struct Running {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Ruler {
    /// Loads the rules and begins. Errors with everything that is wrong in the files.
    pub async fn start(
        mut settings: RulerSettings,
        engine: Engine,
        store: Store,
        clock: Arc<dyn Clock>,
        discover: Discover,
    ) -> Result<(Ruler, Running), Vec<FileError>> {
        let (requests, inbox) = mpsc::channel(RELOADS_WAITING);
        let stop = CancellationToken::new();
        let (mut tasks, mut deliveries) = (JoinSet::new(), JoinSet::new());
        let resend_delay = settings.notify.resend_delay;
        let notifier = Notifier::start(std::mem::take(&mut settings.notify), &mut deliveries, &stop);
        settings.notify.resend_delay = resend_delay;
        let engine = engine.remembering();
        if let Some(recent) = engine.recent().cloned() {
            let stop = stop.clone();
            tasks.spawn(async move {
                let mut tick = tokio::time::interval(FOLLOW_EVERY);
                tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                while stop.run_until_cancelled(tick.tick()).await.is_some() {
                    recent.follow().await;
                }
            });
        }
        let inner = Arc::new(Inner {
            settings: RwLock::new(Arc::new(settings)),
            engine,
            store,
            clock,
            discover,
            notifier,
            views: RwLock::default(),
            reloads: AtomicU64::new(0),
            reloads_failed: AtomicU64::new(0),
            in_force_is_latest: AtomicBool::new(true),
            state_failures: AtomicU64::new(0),
            requests,
        });
        let (first, groups) = inner.read_files(inner.settings()).await;
        let (groups, now) = (groups?, inner.settings());
        let mut work =
            Work { inner: inner.clone(), groups: HashMap::new(), tasks: JoinSet::new(), deliveries, seen: first };
        work.apply(groups, &now).await;
        tasks.spawn(work.run(inbox, stop.clone()));
        Ok((Ruler(inner), Running { tasks, stop }))
    }

    /// Reads the files again. The number of groups now in force, or why the former stay.
    pub async fn reload(&self) -> Result<usize, Vec<FileError>> {
        self.ask(None).await
    }

    /// As [`Ruler::reload`], under other settings; with an error the former stay as they were. Where alerts go is not
    /// among them, but for the delay between words on one ([`Ruler::set_alertmanagers`], [`Desk::replace`]).
    pub async fn replace(&self, settings: RulerSettings) -> Result<usize, Vec<FileError>> {
        self.ask(Some(Box::new(settings))).await
    }

    async fn ask(&self, settings: Option<Box<RulerSettings>>) -> Result<usize, Vec<FileError>> {
        let (answer, wait) = oneshot::channel();
        let closed = || vec![FileError { file: "rules".into(), problems: Vec::new() }];
        self.0.requests.send(Request::Reload(settings, answer)).await.map_err(|_| closed())?;
        wait.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Alerts go to these from now on, all of them.
    pub async fn set_alertmanagers(&self, all: Vec<Alertmanager>) {
        // It fails when the ruler has ended: nobody is told any more.
        let _ = self.0.requests.send(Request::Alertmanagers(all)).await;
    }

    /// Counts a reload that failed before it came to the rules.
    pub fn refused_reload(&self) {
        self.0.reloads.fetch_add(1, Ordering::Relaxed);
        self.0.reloads_failed.fetch_add(1, Ordering::Relaxed);
        self.0.in_force_is_latest.store(false, Ordering::Relaxed);
    }

    /// What tells this process from others, outside of it.
    pub fn external_labels(&self) -> Labels {
        self.0.settings().external_labels.clone()
    }

    /// Groups of a tenant, by file and name.
    pub fn groups(&self, tenant: &TenantId) -> Vec<Arc<GroupView>> {
        self.0.views.read().values().filter(|g| g.tenant == *tenant).cloned().collect()
    }

    /// What takes silences and tells receivers, if this process does.
    pub fn desk(&self) -> Option<Desk> {
        self.0.notifier.desk()
    }

    /// Addresses that alerts are sent to.
    pub fn alertmanagers(&self) -> Vec<String> {
        self.0.notifier.alertmanagers()
    }

    /// Our own figures.
    pub fn metrics(&self) -> Vec<MetricLine> {
        let line = |name, help, kind, labels, value| MetricLine { name, help, kind, labels, value };
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed) as f64;
        let views: Vec<Arc<GroupView>> = self.0.views.read().values().cloned().collect();
        let mut out = vec![
            line("rules_reloads_total", "Rule files read.", "counter", vec![], get(&self.0.reloads)),
            line(
                "rules_reloads_failed_total",
                "Rule files read and found faulty; the former rules stayed.",
                "counter",
                vec![],
                get(&self.0.reloads_failed),
            ),
            line(
                "rules_in_force_are_latest",
                "1: the rules in force are those of the files.",
                "gauge",
                vec![],
                f64::from(u8::from(self.0.in_force_is_latest.load(Ordering::Relaxed))),
            ),
            line(
                "rules_state_write_failures_total",
                "State of alerts that could not be written.",
                "counter",
                vec![],
                get(&self.0.state_failures),
            ),
        ];
        type Read = fn(&GroupView) -> f64;
        let families: [(&'static str, &'static str, &'static str, Read); 9] = [
            ("rules_group_rules", "Rules of the group.", "gauge", |g| g.rules.len() as f64),
            ("rules_group_interval_seconds", "Time between evaluations of the group.", "gauge", |g| {
                g.interval_ms as f64 / 1000.0
            }),
            ("rules_group_last_duration_seconds", "How long the last evaluation took.", "gauge", |g| g.seconds),
            ("rules_group_last_evaluation_timestamp_seconds", "The time of the last evaluation.", "gauge", |g| {
                g.last_ms.unwrap_or(0) as f64 / 1000.0
            }),
            ("rules_evaluations_total", "Evaluations of rules.", "counter", |g| g.counts.evaluations as f64),
            ("rules_evaluation_failures_total", "Evaluations of rules that failed.", "counter", |g| {
                g.counts.failures as f64
            }),
            (
                "rules_group_missed_evaluations_total",
                "Evaluations of the group that came too late and were left out.",
                "counter",
                |g| g.counts.missed as f64,
            ),
            ("rules_samples_written_total", "Samples that rules wrote.", "counter", |g| g.counts.samples as f64),
            ("rules_samples_lost_total", "Samples that rules gave and the store refused.", "counter", |g| {
                g.counts.samples_lost as f64
            }),
        ];
        out.extend(self.0.notifier.metrics());
        if let Some(recent) = self.0.engine.recent() {
            let f = recent.figures();
            out.extend([
                line(
                    "rules_recent_found_total",
                    "Selectors of rules whose samples were in memory.",
                    "counter",
                    vec![],
                    get(&f.found),
                ),
                line(
                    "rules_recent_missed_total",
                    "Selectors of rules that were read from the store.",
                    "counter",
                    vec![],
                    get(&f.missed),
                ),
                line(
                    "rules_recent_reloads_total",
                    "Times at which recent samples were all read anew.",
                    "counter",
                    vec![],
                    get(&f.reloads),
                ),
                line(
                    "rules_recent_series",
                    "Series whose recent samples are in memory.",
                    "gauge",
                    vec![],
                    get(&f.series),
                ),
                line("rules_recent_samples", "Recent samples in memory.", "gauge", vec![], get(&f.samples)),
            ]);
        }
        for (name, help, kind, read) in families {
            out.extend(views.iter().map(|g| line(name, help, kind, vec![("rule_group", g.key.clone())], read(g))));
        }
        out
    }
}

impl Running {
    /// Ends after the evaluations at work, at the latest after `limit`.
    pub async fn stop(mut self, limit: Duration) -> bool {
        self.stop.cancel();
        let ended = async {
            while let Some(done) = self.tasks.join_next().await {
                if let Err(e) = done {
                    tracing::error!(error = %e, "the ruler panicked");
                }
            }
        };
        tokio::time::timeout(limit, ended).await.is_ok()
    }
}

impl Inner {
    fn now_ms(&self) -> i64 {
        self.clock.now().nanos().div_euclid(1_000_000)
    }

    fn settings(&self) -> Arc<RulerSettings> {
        self.settings.read().clone()
    }

    async fn read_files(&self, settings: Arc<RulerSettings>) -> (Seen, Result<Vec<Loaded>, Vec<FileError>>) {
        let discover = self.discover.clone();
        let read = move || {
            let before = seen(&settings.sources, &discover);
            let mut read = load(&settings.sources, &discover);
            for (_, _, group) in read.iter_mut().flatten() {
                group.interval_ms.get_or_insert(millis(settings.interval).max(1));
            }
            (before, read)
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| {
            let problem = super::yaml::Problem {
                place: Default::default(),
                about: String::new(),
                message: format!("reading the files panicked: {e}"),
            };
            (Seen::new(), Err(vec![FileError { file: "rules".into(), problems: vec![problem] }]))
        })
    }

    fn site(&self, tenant: &TenantId) -> Site {
        let settings = self.settings();
        Site {
            engine: self.engine.clone(),
            store: self.store.clone(),
            tenant: tenant.clone(),
            external_labels: Arc::new(settings.external_labels.clone()),
            external_url: settings.external_url.as_str().into(),
        }
    }

    fn state_file(&self, key: &str) -> StateFile {
        StateFile::of(&self.settings().state_dir, key)
    }

    fn show(&self, tenant: &TenantId, group: &Group) {
        let rule = |r: &super::group::ActiveRule| RuleView {
            rule: r.rule.clone(),
            health: r.health.clone(),
            seconds: r.seconds,
            last_ms: r.last_ms,
            state: r.alerts.state(),
            alerts: r.alerts.active().cloned().collect(),
        };
        let view = GroupView {
            key: group.key.clone(),
            tenant: tenant.clone(),
            file: group.file.clone(),
            definition: group.definition.clone(),
            interval_ms: group.interval_ms,
            seconds: group.seconds,
            last_ms: group.last_ms,
            rules: group.rules.iter().map(rule).collect(),
            counts: group.counts,
        };
        let key = (tenant.clone(), group.file.clone(), group.definition.name.clone());
        self.views.write().insert(key, Arc::new(view));
    }

    /// Evaluates a group on its schedule until told to stop; gives it back then.
    async fn run_group(self: Arc<Self>, tenant: TenantId, mut group: Group, stop: CancellationToken) -> Group {
        let schedule = Schedule::new(&group.key, group.interval_ms);
        let mut last = group.last_ms.unwrap_or_else(|| self.now_ms());
        let mut mark = group.state_mark();
        let mut heard = self.notifier.additions();
        loop {
            let wait = schedule.after(last).saturating_sub(self.now_ms()).clamp(1, group.interval_ms);
            tokio::select! {
                () = stop.cancelled() => return group,
                () = tokio::time::sleep(Duration::from_millis(wait.unsigned_abs())) => {}
            }
            let now = self.now_ms();
            // The wall clock went back: begin from there.
            if now < last - group.interval_ms {
                last = now;
            }
            let Some(due) = schedule.due(last, now) else { continue };
            last = due.at;
            group.counts.missed += due.missed;
            let site = self.site(&tenant);
            group.evaluate(due.at, &site).await;
            let next_mark = group.state_mark();
            if next_mark != mark || group.has_pending() {
                mark = next_mark;
                self.keep(&group, due.at).await;
            }
            self.tell(&mut group, due.at, &site, &mut heard);
            self.show(&tenant, &group);
        }
    }

    /// Hands over what is to be told now. After the state is written: what is told of is not forgotten.
    /// `heard`: the additions to those who are told that the group knows of.
    fn tell(&self, group: &mut Group, at_ms: i64, site: &Site, heard: &mut u64) {
        if self.notifier.is_empty() {
            return;
        }
        let resend_ms = self.notifier.resend_ms();
        let believed_ms = resend_ms.max(group.interval_ms).saturating_mul(4);
        let additions = self.notifier.additions();
        let is_new = std::mem::replace(heard, additions) != additions;
        let due = group.due(at_ms, if is_new { 0 } else { resend_ms });
        let notices: Vec<Notice> =
            due.iter().map(|(rule, alert)| Notice::of(alert, rule, site, at_ms, believed_ms)).collect();
        if !notices.is_empty() {
            self.notifier.notify(&notices);
        }
    }

    /// Writes the state of a group's alerts.
    async fn keep(&self, group: &Group, at_ms: i64) {
        let (file, text) = (self.state_file(&group.key), group.state(at_ms));
        let saved = tokio::task::spawn_blocking(move || file.save(&text)).await;
        let error = match saved {
            Ok(Ok(())) => return,
            Ok(Err(e)) => e.to_string(),
            Err(e) => e.to_string(),
        };
        self.state_failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!(group = %group.key, error, "state of alerts cannot be written; a restart would forget changes");
    }
}
