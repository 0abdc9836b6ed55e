//! Who is told of what: the part of Alertmanager's configuration file that is understood. What is not, is named.
//!
//! Understood: `global` (SMTP and Slack), `route` with matchers, grouping and times, `receivers` with `webhook_configs`,
//! `slack_configs` and `email_configs`, `inhibit_rules`, `templates`.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use storage::model::{Labels, MatchOp, Matcher};

use super::{
    alertmanager::Secret,
    matchers::{all_match, parse_matchers},
};
use crate::rules::{
    file::FileError,
    ruler::Discover,
    template::{Library, Template},
    yaml::{self, Entry, FILE_BYTES_MAX, Node, Place, Problem, Report, Value},
};

/// Routes of one file.
const ROUTES_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub struct Plan {
    /// The first is the root; children follow their parents.
    pub routes: Vec<Route>,
    pub receivers: BTreeMap<String, Vec<Channel>>,
    pub inhibit: Vec<Inhibit>,
    pub library: Library,
    /// Of the texts it was read from.
    pub mark: u64,
}

#[derive(Debug, Default)]
pub struct Route {
    pub receiver: String,
    pub matchers: Vec<Matcher>,
    /// `None`: every alert on its own.
    pub group_by: Option<Vec<String>>,
    pub wait_ms: i64,
    pub interval_ms: i64,
    pub repeat_ms: i64,
    pub goes_on: bool,
    pub children: Vec<usize>,
}

#[derive(Debug)]
pub struct Inhibit {
    pub source: Vec<Matcher>,
    pub target: Vec<Matcher>,
    pub equal: Vec<String>,
}

/// One way to a receiver.
#[derive(Clone, Debug)]
pub struct Channel {
    pub send_resolved: bool,
    pub kind: ChannelKind,
}

#[derive(Clone, Debug)]
pub enum ChannelKind {
    Webhook {
        url: Secret,
        bearer: Option<Secret>,
        alerts_max: usize,
    },
    Slack {
        url: Secret,
        channel: Template,
        username: Template,
        title: Template,
        title_link: Template,
        text: Template,
        color: Template,
    },
    Email(Box<Email>),
}

#[derive(Clone, Debug)]
pub struct Email {
    pub to: Template,
    pub from: Template,
    /// `host:port`
    pub smarthost: String,
    pub hello: String,
    pub username: String,
    pub password: Option<Secret>,
    pub require_tls: bool,
    pub ca_file: Option<PathBuf>,
    pub subject: Template,
    pub text: Template,
}

const SUBJECT: &str = "[{{ .Status | toUpper }}{{ if eq .Status \"firing\" }}: {{ len .Alerts.Firing }}{{ end }}] \
                       {{ .GroupLabels.SortedPairs.Values | join \" \" }}";

const BODY: &str = "{{ range .Alerts }}{{ .Status | toUpper }} {{ .Labels.alertname }}\n\
                    {{ range .Annotations.SortedPairs }}  {{ .Name }}: {{ .Value }}\n{{ end }}\
                    {{ range .Labels.SortedPairs }}  {{ .Name }} = {{ .Value }}\n{{ end }}\
                    {{ if .GeneratorURL }}  {{ .GeneratorURL }}\n{{ end }}\n{{ end }}";

fn template(text: &str) -> Template {
    Template::parse_with(text, &[]).expect("our own templates parse")
}

/// What `global` gives to the rest.
struct Global {
    smarthost: String,
    from: String,
    hello: String,
    username: String,
    password: Option<Secret>,
    require_tls: bool,
    slack: Option<Secret>,
}

/// Reads and checks a file.
pub fn read(path: &Path, discover: &Discover) -> Result<Plan, FileError> {
    let file = path.display().to_string();
    let top = Place { line: 1, column: 1 };
    let fail = |problems: Vec<Problem>| FileError { file: file.clone(), problems };
    let one = |message: String| fail(vec![Problem { place: top, about: String::new(), message }]);
    let size = std::fs::metadata(path).map_err(|e| one(format!("cannot read: {e}")))?.len();
    if size > FILE_BYTES_MAX as u64 {
        return Err(one(format!("the file is larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| one(format!("cannot read: {e}")))?;
    let root = yaml::parse(&text).map_err(|p| fail(vec![p]))?;
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut reader = Reader { report: Report::default(), base, mark: DefaultHasher::new() };
    text.hash(&mut reader.mark);
    let mut plan = reader.root(&root, discover);
    plan.mark = reader.mark.finish();
    let mut problems = reader.report.problems;
    if problems.is_empty() {
        return Ok(plan);
    }
    problems.sort();
    problems.dedup();
    Err(fail(problems))
}

struct Reader {
    report: Report,
    base: PathBuf,
    mark: DefaultHasher,
}

const FILE_FIELDS: [&str; 5] = ["global", "route", "receivers", "inhibit_rules", "templates"];
const ROUTE_FIELDS: [&str; 9] = [
    "receiver",
    "group_by",
    "group_wait",
    "group_interval",
    "repeat_interval",
    "matchers",
    "match",
    "match_re",
    "routes",
];

impl Reader {
    /// As [`Report::fields`]; what Alertmanager has and we do not is said to be that.
    fn fields<'a>(&mut self, node: &'a Node, what: &str, known: &[&str]) -> Vec<&'a Entry> {
        let Value::Map(entries) = &node.value else { return self.report.fields(node, what, known) };
        let mut out = Vec::new();
        for e in entries {
            if known.contains(&e.key.as_str()) {
                out.push(e);
            } else {
                let known = known.join(", ");
                self.report.note(e.place, format!("{} is not supported in {what}; supported are {known}", e.key));
            }
        }
        out
    }

    fn text(&mut self, entry: &Entry) -> String {
        self.report.text(&entry.value, &entry.key).unwrap_or_default()
    }

    fn template(&mut self, entry: &Entry) -> Template {
        let text = self.text(entry);
        Template::parse_with(&text, &[]).unwrap_or_else(|e| {
            self.report.note(entry.value.place, format!("{}: template: {e}", entry.key));
            Template::plain("")
        })
    }

    fn file(&mut self, entry: &Entry) -> PathBuf {
        let text = self.text(entry);
        self.base.join(text)
    }

    fn root(&mut self, root: &Node, discover: &Discover) -> Plan {
        let mut plan = Plan::default();
        let fields = self.fields(root, "the file", &FILE_FIELDS);
        let find = |name: &str| fields.iter().find(|e| e.key == name).copied();
        let global = self.global(find("global"));
        if let Some(e) = find("templates") {
            for pattern in self.report.texts(&e.value, "templates") {
                self.templates(&pattern, e.place, discover, &mut plan.library);
            }
        }
        if let Some(e) = find("receivers") {
            for node in self.report.list(&e.value, "receivers") {
                let (name, channels) = self.receiver(node, &global);
                if name.is_empty() {
                    self.report.note(node.place, "missing name in receiver");
                } else if plan.receivers.insert(name.clone(), channels).is_some() {
                    self.report.note(node.place, format!("notification config name {name:?} is not unique"));
                }
            }
        }
        self.report.about.clear();
        match find("route") {
            Some(e) => {
                let default = Route {
                    group_by: Some(Vec::new()),
                    wait_ms: 30_000,
                    interval_ms: 300_000,
                    repeat_ms: 4 * 3_600_000,
                    ..Route::default()
                };
                self.route(&e.value, &default, &mut plan, true);
            }
            None => self.report.note(root.place, "no routes provided"),
        }
        if let Some(e) = find("inhibit_rules") {
            for node in self.report.list(&e.value, "inhibit_rules") {
                let rule = self.inhibit(node);
                plan.inhibit.push(rule);
            }
        }
        plan
    }

    fn templates(&mut self, pattern: &str, place: Place, discover: &Discover, library: &mut Library) {
        let pattern = self.base.join(pattern);
        let pattern = pattern.to_string_lossy();
        let found =
            if pattern.contains(['*', '?']) { discover(&pattern) } else { vec![PathBuf::from(pattern.as_ref())] };
        for path in found {
            let read = std::fs::read_to_string(&path).map_err(|e| e.to_string());
            let read = read.and_then(|text| {
                text.hash(&mut self.mark);
                library.add(&text)
            });
            if let Err(e) = read {
                self.report.note(place, format!("template file {}: {e}", path.display()));
            }
        }
    }

    fn global(&mut self, entry: Option<&Entry>) -> Global {
        let mut out = Global {
            smarthost: String::new(),
            from: String::new(),
            hello: "localhost".into(),
            username: String::new(),
            password: None,
            require_tls: true,
            slack: None,
        };
        let Some(entry) = entry else { return out };
        // Our alerts say themselves until when they are to be believed.
        const KNOWN: [&str; 10] = [
            "resolve_timeout",
            "smtp_smarthost",
            "smtp_from",
            "smtp_hello",
            "smtp_auth_username",
            "smtp_auth_password",
            "smtp_auth_password_file",
            "smtp_require_tls",
            "slack_api_url",
            "slack_api_url_file",
        ];
        for e in self.fields(&entry.value, "global", &KNOWN) {
            match e.key.as_str() {
                "smtp_smarthost" => out.smarthost = self.text(e),
                "smtp_from" => out.from = self.text(e),
                "smtp_hello" => out.hello = self.text(e),
                "smtp_auth_username" => out.username = self.text(e),
                "smtp_auth_password" => out.password = Some(Secret::Text(self.text(e))),
                "smtp_auth_password_file" => out.password = Some(Secret::File(self.file(e))),
                "smtp_require_tls" => out.require_tls = self.report.boolean(&e.value, &e.key).unwrap_or(true),
                "slack_api_url" => out.slack = Some(Secret::Text(self.text(e))),
                "slack_api_url_file" => out.slack = Some(Secret::File(self.file(e))),
                _ => drop(self.report.duration(&e.value, &e.key)),
            }
        }
        out
    }

    fn receiver(&mut self, node: &Node, global: &Global) -> (String, Vec<Channel>) {
        let (mut name, mut channels) = (String::new(), Vec::new());
        self.report.about.clear();
        let known = ["name", "webhook_configs", "slack_configs", "email_configs"];
        for e in self.fields(node, "a receiver", &known) {
            if e.key == "name" {
                name = self.text(e);
                self.report.about = format!("receiver {name:?}");
                continue;
            }
            for node in self.report.list(&e.value, &e.key) {
                channels.extend(match e.key.as_str() {
                    "webhook_configs" => self.webhook(node),
                    "slack_configs" => self.slack(node, global),
                    _ => self.email(node, global),
                });
            }
        }
        (name, channels)
    }

    fn url(&mut self, entry: &Entry) -> Secret {
        let text = self.text(entry);
        if !url::Url::parse(&text).is_ok_and(|u| matches!(u.scheme(), "http" | "https")) {
            self.report.note(entry.value.place, format!("expected an http or https URL for {}", entry.key));
        }
        Secret::Text(text)
    }

    fn webhook(&mut self, node: &Node) -> Option<Channel> {
        let (mut url, mut bearer, mut alerts_max, mut send_resolved) = (None, None, 0, true);
        for e in
            self.fields(node, "webhook_configs", &["url", "url_file", "max_alerts", "send_resolved", "http_config"])
        {
            match e.key.as_str() {
                "url" => url = Some(self.url(e)),
                "url_file" => url = Some(Secret::File(self.file(e))),
                "max_alerts" => alerts_max = self.report.count(&e.value, "max_alerts").unwrap_or(0),
                "send_resolved" => send_resolved = self.report.boolean(&e.value, "send_resolved").unwrap_or(true),
                _ => bearer = self.bearer(&e.value),
            }
        }
        if url.is_none() {
            self.report.note(node.place, "one of url or url_file must be configured");
        }
        Some(Channel { send_resolved, kind: ChannelKind::Webhook { url: url?, bearer, alerts_max } })
    }

    /// `http_config: {authorization: {credentials: ..}}`
    fn bearer(&mut self, node: &Node) -> Option<Secret> {
        let mut out = None;
        for e in self.fields(node, "http_config", &["authorization"]) {
            for e in self.fields(&e.value, "authorization", &["type", "credentials", "credentials_file"]) {
                match e.key.as_str() {
                    "credentials" => out = Some(Secret::Text(self.text(e))),
                    "credentials_file" => out = Some(Secret::File(self.file(e))),
                    _ if self.text(e).eq_ignore_ascii_case("bearer") => {}
                    _ => self.report.note(e.place, "only the type Bearer is supported"),
                }
            }
        }
        out
    }

    fn slack(&mut self, node: &Node, global: &Global) -> Option<Channel> {
        const KNOWN: [&str; 9] = [
            "api_url",
            "api_url_file",
            "channel",
            "username",
            "title",
            "title_link",
            "text",
            "color",
            "send_resolved",
        ];
        let (mut api, mut send_resolved) = (global.slack.clone(), false);
        let (mut channel, mut username) = (Template::plain(""), Template::plain("Sightline"));
        let (mut title, mut title_link, mut text) =
            (template(SUBJECT), template("{{ .ExternalURL }}"), template(BODY));
        let mut color = template("{{ if eq .Status \"firing\" }}danger{{ else }}good{{ end }}");
        for e in self.fields(node, "slack_configs", &KNOWN) {
            match e.key.as_str() {
                "api_url" => api = Some(self.url(e)),
                "api_url_file" => api = Some(Secret::File(self.file(e))),
                "channel" => channel = self.template(e),
                "username" => username = self.template(e),
                "title" => title = self.template(e),
                "title_link" => title_link = self.template(e),
                "text" => text = self.template(e),
                "color" => color = self.template(e),
                _ => send_resolved = self.report.boolean(&e.value, "send_resolved").unwrap_or(false),
            }
        }
        if api.is_none() {
            self.report.note(node.place, "no global Slack API URL set either inline or in a file");
        }
        let kind = ChannelKind::Slack { url: api?, channel, username, title, title_link, text, color };
        Some(Channel { send_resolved, kind })
    }

    fn email(&mut self, node: &Node, global: &Global) -> Option<Channel> {
        const KNOWN: [&str; 13] = [
            "to",
            "from",
            "smarthost",
            "hello",
            "auth_username",
            "auth_password",
            "auth_password_file",
            "require_tls",
            "tls_config",
            "headers",
            "text",
            "html",
            "send_resolved",
        ];
        let mut send_resolved = false;
        let mut out = Email {
            to: Template::plain(""),
            from: Template::plain(&global.from),
            smarthost: global.smarthost.clone(),
            hello: global.hello.clone(),
            username: global.username.clone(),
            password: global.password.clone(),
            require_tls: global.require_tls,
            ca_file: None,
            subject: template(SUBJECT),
            text: template(BODY),
        };
        for e in self.fields(node, "email_configs", &KNOWN) {
            match e.key.as_str() {
                "to" => out.to = self.template(e),
                "from" => out.from = self.template(e),
                "smarthost" => out.smarthost = self.text(e),
                "hello" => out.hello = self.text(e),
                "auth_username" => out.username = self.text(e),
                "auth_password" => out.password = Some(Secret::Text(self.text(e))),
                "auth_password_file" => out.password = Some(Secret::File(self.file(e))),
                "require_tls" => out.require_tls = self.report.boolean(&e.value, "require_tls").unwrap_or(true),
                "send_resolved" => send_resolved = self.report.boolean(&e.value, "send_resolved").unwrap_or(false),
                "text" => out.text = self.template(e),
                "tls_config" => {
                    for e in self.fields(&e.value, "tls_config", &["ca_file"]) {
                        out.ca_file = Some(self.file(e));
                    }
                }
                "headers" => {
                    for e in self.fields(&e.value, "headers", &["Subject", "subject"]) {
                        out.subject = self.template(e);
                    }
                }
                // Mails are text; an empty HTML part asks for just that.
                _ if self.text(e).is_empty() => {}
                _ => self.report.note(e.place, "html is not supported in email_configs; use text"),
            }
        }
        for (missing, what) in [
            (out.to.text().is_empty(), "missing to address in email config"),
            (out.from.text().is_empty(), "no global SMTP from set"),
            (out.smarthost.is_empty(), "no global SMTP smarthost set"),
        ] {
            if missing {
                self.report.note(node.place, what);
            }
        }
        if !out.smarthost.is_empty() && out.smarthost.rsplit_once(':').is_none_or(|(_, p)| p.parse::<u16>().is_err())
        {
            self.report.note(node.place, format!("smarthost {:?} is not host:port", out.smarthost));
        }
        Some(Channel { send_resolved, kind: ChannelKind::Email(Box::new(out)) })
    }

    /// Adds the route and its children; gives its number.
    fn route(&mut self, node: &Node, parent: &Route, plan: &mut Plan, root: bool) -> usize {
        let known: Vec<&str> = ROUTE_FIELDS.iter().copied().chain((!root).then_some("continue")).collect();
        let fields = self.fields(node, "a route", &known);
        let mut route = Route {
            receiver: parent.receiver.clone(),
            group_by: parent.group_by.clone(),
            wait_ms: parent.wait_ms,
            interval_ms: parent.interval_ms,
            repeat_ms: parent.repeat_ms,
            ..Route::default()
        };
        let mut children = None;
        for e in fields {
            match e.key.as_str() {
                "receiver" => route.receiver = self.text(e),
                "group_by" => {
                    let names = self.report.texts(&e.value, "group_by");
                    route.group_by = if names.iter().any(|n| n == "...") { None } else { Some(names) };
                }
                "group_wait" => route.wait_ms = self.report.duration(&e.value, "group_wait").unwrap_or(0),
                "group_interval" => route.interval_ms = self.positive(e),
                "repeat_interval" => route.repeat_ms = self.positive(e),
                "continue" => route.goes_on = self.report.boolean(&e.value, "continue").unwrap_or(false),
                "routes" => children = Some(&e.value),
                _ => route.matchers.extend(self.matchers(e)),
            }
        }
        if root && !route.matchers.is_empty() {
            self.report.note(node.place, "root route must not have any matchers");
        }
        if route.receiver.is_empty() {
            self.report.note(node.place, "root route must specify a default receiver");
        } else if !plan.receivers.contains_key(&route.receiver) {
            self.report.note(node.place, format!("undefined receiver {:?} used in route", route.receiver));
        }
        let number = plan.routes.len();
        if number >= ROUTES_MAX {
            self.report.note(node.place, format!("the file holds more than {ROUTES_MAX} routes"));
            return number.saturating_sub(1);
        }
        plan.routes.push(Route::default());
        for child in children.map(|n| self.report.list(n, "routes")).unwrap_or_default() {
            let child = self.route(child, &route, plan, false);
            route.children.push(child);
        }
        plan.routes[number] = route;
        number
    }

    fn positive(&mut self, entry: &Entry) -> i64 {
        let ms = self.report.duration(&entry.value, &entry.key).unwrap_or(1);
        if ms == 0 {
            self.report.note(entry.value.place, format!("{} cannot be zero", entry.key));
        }
        ms.max(1)
    }

    /// `matchers` (texts), `match` and `match_re` (mappings).
    fn matchers(&mut self, entry: &Entry) -> Vec<Matcher> {
        let mut out = Vec::new();
        if entry.key.ends_with("matchers") {
            for text in self.report.texts(&entry.value, &entry.key) {
                match parse_matchers(&text) {
                    Ok(matchers) => out.extend(matchers),
                    Err(why) => self.report.note(entry.place, why),
                }
            }
            return out;
        }
        let op = if entry.key.ends_with("_re") { MatchOp::Re } else { MatchOp::Eq };
        for (name, value, place) in self.report.pairs(&entry.value, &entry.key) {
            match Matcher::new(name, op, value) {
                Ok(m) => out.push(m),
                Err(e) => self.report.note(place, format!("bad regular expression: {e}")),
            }
        }
        out
    }

    fn inhibit(&mut self, node: &Node) -> Inhibit {
        const KNOWN: [&str; 7] = [
            "source_matchers",
            "target_matchers",
            "source_match",
            "target_match",
            "source_match_re",
            "target_match_re",
            "equal",
        ];
        let mut out = Inhibit { source: Vec::new(), target: Vec::new(), equal: Vec::new() };
        for e in self.fields(node, "inhibit_rules", &KNOWN) {
            match e.key.as_str() {
                "equal" => out.equal = self.report.texts(&e.value, "equal"),
                key if key.starts_with("source") => out.source.extend(self.matchers(e)),
                _ => out.target.extend(self.matchers(e)),
            }
        }
        out
    }
}

impl Plan {
    /// The routes that an alert takes: the deepest that match, and more where one goes on.
    pub fn routes_of(&self, labels: &Labels) -> Vec<usize> {
        let mut out = Vec::new();
        self.descend(0, labels, &mut out);
        out
    }

    fn descend(&self, at: usize, labels: &Labels, out: &mut Vec<usize>) -> bool {
        let Some(route) = self.routes.get(at) else { return false };
        if !all_match(&route.matchers, labels) {
            return false;
        }
        let mut taken = false;
        for child in &route.children {
            if self.descend(*child, labels, out) {
                taken = true;
                if !self.routes[*child].goes_on {
                    break;
                }
            }
        }
        if !taken {
            out.push(at);
        }
        true
    }
}
