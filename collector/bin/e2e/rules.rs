//! Rules of the real process: promtool agrees with us about our files, and Debian's Alertmanager hears of every alert through
//! a kill -9.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::{
    client::Client,
    server::{Server, program},
    skip::skipped,
};

/// How long to wait for what takes a few seconds.
const PATIENCE: Duration = Duration::from_secs(60);

fn there(tool: &str) -> bool {
    Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn rules(args: &[&str]) -> Output {
    Command::new(program()).arg("rules").args(args).output().expect("the program runs")
}

/// Path below the repository.
fn file(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn promtool_and_we_agree_about_rule_files_and_their_tests() {
    if !there("promtool") {
        return skipped("promtool_and_we_agree_about_rule_files_and_their_tests", "Debian's prometheus");
    }
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let rule = |rule: &str| format!("groups:\n- name: g\n  rules:\n  - {rule}\n");
    let mut files = vec![(file("dashboards/rules/sightline.yml"), true), (write("empty.yml", ""), true)];
    for (i, (text, good)) in [
        ("{record: a, expr: up}", true),
        ("{alert: A, expr: 'up == 0', for: 1h30m, labels: {a: '{{ $value | humanize }}'}}", true),
        ("{alert: A, expr: 'up', annotations: {a: '{{ range query \"up\" }}{{ .Labels.job }}{{ end }}'}}", true),
        ("{record: a, alert: b, expr: up}", false),
        ("{expr: up}", false),
        ("{record: a}", false),
        ("{record: a, expr: 'sum('}", false),
        ("{record: a, expr: up, for: 1m}", false),
        ("{record: a, expr: up, annotations: {b: c}}", false),
        ("{record: 'a b{', expr: up}", false),
        ("{alert: A, expr: up, for: 1x}", false),
        ("{alert: A, expr: up, froo: 1m}", false),
        ("{alert: A, expr: up, labels: {__name__: x}}", false),
        ("{alert: A, expr: up, annotations: {a: '{{ $nope }}'}}", false),
        ("{alert: A, expr: up, annotations: {a: '{{ nope 1 }}'}}", false),
        ("{alert: A, expr: up, annotations: {a: '{{ if }}'}}", false),
    ]
    .into_iter()
    .enumerate()
    {
        files.push((write(&format!("{i}.yml"), &rule(text)), good));
    }
    files.push((write("twice.yml", "groups:\n- {name: g}\n- {name: g}\n"), false));
    for (path, good) in &files {
        let ours = rules(&["check", path]);
        let theirs = Command::new("promtool").args(["check", "rules", path]).output().unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(ours.status.success(), *good, "{text}\n{}", String::from_utf8_lossy(&ours.stderr));
        assert_eq!(theirs.status.success(), *good, "{text}\n{}", String::from_utf8_lossy(&theirs.stderr));
    }
    let right = file("dashboards/rules/sightline.test.yml");
    let text = std::fs::read_to_string(&right).unwrap();
    let wrong = text.replace(
        "rule_files: [sightline.yml]",
        &format!("rule_files: ['{}']", file("dashboards/rules/sightline.yml")),
    );
    let wrong = write("wrong.yml", &wrong.replace("value: 1}", "value: 2}"));
    for (path, good) in [(&right, true), (&wrong, false)] {
        let ours = rules(&["test", path]);
        let theirs = Command::new("promtool").args(["test", "rules", path]).output().unwrap();
        assert_eq!(ours.status.success(), good, "{}", String::from_utf8_lossy(&ours.stdout));
        assert_eq!(theirs.status.success(), good, "{}", String::from_utf8_lossy(&theirs.stdout));
    }
}

/// What a webhook was told: alert name, status, in the order of coming.
type Told = Arc<Mutex<Vec<(String, String)>>>;

/// A receiver of Alertmanager's webhook on this machine.
fn webhook() -> (SocketAddr, Told) {
    let told = Told::default();
    let keep = told.clone();
    let address = receiver(move |_, message| {
        let mut told = keep.lock().unwrap();
        for alert in message["alerts"].as_array().into_iter().flatten() {
            let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
            told.push((text(&alert["labels"]["alertname"]), text(&alert["status"])));
        }
    });
    (address, told)
}

/// What is posted to this machine, each with its head.
fn receiver(take: impl Fn(&str, Value) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut data = Vec::new();
            let mut buffer = [0; 4096];
            let request = loop {
                let Ok(n @ 1..) = stream.read(&mut buffer) else { break None };
                data.extend_from_slice(&buffer[..n]);
                let text = String::from_utf8_lossy(&data).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|l| {
                    l.to_ascii_lowercase().strip_prefix("content-length: ").and_then(|v| v.parse::<usize>().ok())
                });
                if length.is_some_and(|n| body.len() >= n) {
                    break Some((head.to_owned(), body.to_owned()));
                }
            };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let Some((head, body)) = request else { continue };
            if let Ok(message) = serde_json::from_str::<Value>(&body) {
                take(&head, message);
            }
        }
    });
    address
}

struct Alertmanager {
    child: Child,
    http: SocketAddr,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Alertmanager {
    /// Tells the webhook of each alert on its own and at once, and again only after an hour.
    fn start(dir: &Path, webhook: SocketAddr) -> Alertmanager {
        // Free a moment ago.
        let http = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        let config = format!(
            "route: {{receiver: hook, group_by: [alertname], group_wait: 10ms, group_interval: 200ms, repeat_interval: 1h}}\n\
             receivers:\n- name: hook\n  webhook_configs: [{{url: 'http://{webhook}/', send_resolved: true}}]\n"
        );
        std::fs::write(dir.join("alertmanager.yml"), config).unwrap();
        let child = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", dir.join("alertmanager.yml").display()))
            .arg(format!("--storage.path={}", dir.join("am").display()))
            .arg(format!("--web.listen-address={http}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("alertmanager.log")).unwrap())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        while !Client::new(http).get("/-/ready").is_ok_and(|a| a.status == 200) {
            assert!(Instant::now() < end, "Alertmanager is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        Alertmanager { child, http }
    }
}

fn times(told: &Told, alert: &str, status: &str) -> usize {
    told.lock().unwrap().iter().filter(|(a, s)| a == alert && s == status).count()
}

fn until(told: &Told, alert: &str, status: &str) {
    let end = Instant::now() + PATIENCE;
    while times(told, alert, status) == 0 {
        assert!(Instant::now() < end, "{alert} was never told as {status}: {:?}", told.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn alertmanager_hears_of_every_alert_through_a_kill() {
    if !there("prometheus-alertmanager") {
        return skipped("alertmanager_hears_of_every_alert_through_a_kill", "Debian's prometheus-alertmanager");
    }
    let dir = tempfile::tempdir().unwrap();
    let (hook, told) = webhook();
    let alertmanager = Alertmanager::start(dir.path(), hook);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let turn = now + 5.0;
    // One that goes on, one that ends and one that begins while we are away, one that waits across the kill.
    let rules = format!(
        "groups:\n- name: g\n  interval: 250ms\n  rules:\n  - {{alert: GoesOn, expr: vector(1)}}\n  \
         - {{alert: Ends, expr: vector(time()) < {turn}}}\n  - {{alert: Begins, expr: vector(time()) > {turn}}}\n  \
         - {{alert: Waits, expr: vector(1), for: 6s}}\n"
    );
    std::fs::write(dir.path().join("rules.yml"), rules).unwrap();
    let config = format!(
        "no_collect: true\nrules: [rules.yml]\nalerting:\n  alertmanagers: ['http://{}']\n  resend_delay: 1s\n",
        alertmanager.http
    );
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, config).unwrap();
    let data = dir.path().join("data");
    let args = ["--config", path.to_str().unwrap()];
    let server = Server::start(&data, &args);
    until(&told, "GoesOn", "firing");
    until(&told, "Ends", "firing");
    let shown = server.get("/api/v1/alertmanagers").json();
    assert_eq!(shown["data"]["activeAlertmanagers"][0]["url"], format!("http://{}/api/v2/alerts", alertmanager.http));
    assert_eq!(times(&told, "Waits", "firing"), 0);
    server.kill();
    let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    std::thread::sleep(Duration::from_secs_f64((turn + 0.3 - passed).clamp(0.1, 6.0)));
    let server = Server::start(&data, &args);
    until(&told, "Ends", "resolved");
    until(&told, "Begins", "firing");
    until(&told, "Waits", "firing");
    let groups = server.get("/api/v1/rules?type=alert").json();
    let rules = groups["data"]["groups"][0]["rules"].as_array().unwrap().clone();
    let states: Vec<&str> = rules.iter().map(|r| r["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["firing", "inactive", "firing", "firing"]);
    assert_eq!(server.get("/api/v1/alerts").json()["data"]["alerts"].as_array().unwrap().len(), 3);
    assert!(times(&told, "GoesOn", "firing") <= 2, "{:?}", told.lock().unwrap());
    for (alert, status) in [("Ends", "firing"), ("Ends", "resolved"), ("Begins", "firing"), ("Waits", "firing")] {
        assert!((1..=2).contains(&times(&told, alert, status)), "{alert}: {:?}", told.lock().unwrap());
    }
    assert!(server.stop().0.success());
}

#[test]
fn a_site_without_an_alertmanager_is_told_through_a_kill_and_silences_hold() {
    let dir = tempfile::tempdir().unwrap();
    let (hook, told) = webhook();
    let (other, told_there) = webhook();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let rules = "groups:\n- name: g\n  interval: 250ms\n  rules:\n  - {alert: On, expr: vector(1)}\n  \
                 - {alert: Quiet, expr: vector(1), for: 3s, labels: {quiet: 'yes'}}\n  - {alert: Late, expr: vector(1), for: 4s}\n  \
                 - {alert: Held, expr: vector(1), for: 1s}\n  - {alert: First, expr: vector(1), labels: {team: a}}\n  \
                 - {alert: Second, expr: vector(1), for: 500ms, labels: {team: a}}\n  - {alert: Again, expr: vector(1)}\n";
    write("rules.yml", rules);
    let receivers = |hook: SocketAddr| {
        format!(
            "route:\n  {{receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 300ms, repeat_interval: 1h, routes: [\n    \
             {{matchers: [team=a], group_by: [team], group_wait: 2s}}, {{matchers: [alertname=Again], repeat_interval: 600ms}}]}}\n\
             inhibit_rules: [{{source_matchers: [alertname=On], target_matchers: [alertname=Held]}}]\n\
             receivers:\n- name: hook\n  webhook_configs: [{{url: 'http://{hook}/'}}]\n"
        )
    };
    write("receivers.yml", &receivers(hook));
    write(
        "config.yaml",
        "no_collect: true\nrules: [rules.yml]\nalerting: {config_file: receivers.yml, resend_delay: 500ms}\n",
    );
    let path = dir.path().join("config.yaml");
    let (data, args) = (dir.path().join("data"), ["--config", path.to_str().unwrap()]);
    let server = Server::start(&data, &args);
    let silence = "{\"matchers\":[{\"name\":\"quiet\",\"value\":\"yes\",\"isRegex\":false}],\"startsAt\":\"2020-01-01T00:00:00Z\",\
                   \"endsAt\":\"2100-01-01T00:00:00Z\",\"createdBy\":\"me\",\"comment\":\"c\"}";
    let made = server.client().post("/alertmanager/api/v2/silences", "application/json", silence.as_bytes()).unwrap();
    assert_eq!(made.status, 200, "{}", made.text());
    until(&told, "On", "firing");
    // What began within the wait of its group is told in one message.
    until(&told, "Second", "firing");
    assert_eq!(times(&told, "First", "firing"), 1, "{:?}", told.lock().unwrap());
    let end = Instant::now() + PATIENCE;
    while times(&told, "Again", "firing") < 2 {
        assert!(Instant::now() < end, "never repeated: {:?}", told.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    // What was told is on the disk a moment after the receiver has it.
    std::thread::sleep(Duration::from_millis(300));
    server.kill();
    let server = Server::start(&data, &args);
    until(&told, "Late", "firing");
    let alerts = server.get("/alertmanager/api/v2/alerts?filter=quiet%3Dyes").json();
    assert_eq!(alerts[0]["status"]["state"], "suppressed", "{alerts}");
    let alerts = server.get("/alertmanager/api/v2/alerts?filter=alertname%3DHeld").json();
    assert_eq!(alerts[0]["status"]["inhibitedBy"].as_array().map(Vec::len), Some(1), "{alerts}");
    let groups = server.get("/alertmanager/api/v2/alerts/groups?silenced=false&inhibited=false").json();
    let team = groups.as_array().and_then(|all| all.iter().find(|g| g["labels"]["team"] == "a")).cloned();
    assert_eq!(team.map(|g| g["alerts"].as_array().map(Vec::len)), Some(Some(2)), "{groups}");
    assert_eq!(server.get("/alertmanager/api/v2/silences").json()[0]["id"], made.json()["silenceID"]);
    // Where it is missing the test with the real Alertmanager is skipped, loudly.
    if there("amtool") {
        let url = format!("--alertmanager.url=http://{}/alertmanager", server.http);
        let ours = Command::new("amtool").args([&url, "silence", "query", "-q"]).output().unwrap();
        let ids = String::from_utf8_lossy(&ours.stdout).into_owned();
        assert_eq!(
            ids.trim(),
            made.json()["silenceID"].as_str().unwrap(),
            "{}",
            String::from_utf8_lossy(&ours.stderr)
        );
    }
    assert_eq!((times(&told, "Quiet", "firing"), times(&told, "Held", "firing")), (0, 0));
    assert!((1..=2).contains(&times(&told, "On", "firing")), "{:?}", told.lock().unwrap());
    // A bad file of receivers changes nothing; a good one is in force without a start, and nobody is told twice.
    let reload = || server.client().post("/-/reload", "text/plain", b"").unwrap();
    write("receivers.yml", &receivers(other).replace("group_wait: 2s", "group_wait: soon"));
    let refused = reload();
    assert_eq!(refused.status, 500, "{}", refused.text());
    assert!(refused.text().contains("receivers.yml:3:"), "{}", refused.text());
    write("receivers.yml", &receivers(other));
    let taken = reload();
    assert_eq!((taken.status, taken.text().trim()), (200, "1 rule groups in force"));
    until(&told_there, "Again", "firing");
    assert_eq!(times(&told_there, "On", "firing"), 0, "{:?}", told_there.lock().unwrap());
    assert!(server.stop().0.success());
}

/// What an Alertmanager was told: the request's head, and the alert.
type Posted = Arc<Mutex<Vec<(String, Value)>>>;

fn alertmanager() -> (SocketAddr, Posted) {
    let posted = Posted::default();
    let keep = posted.clone();
    let address = receiver(move |head, alerts| {
        let alerts = alerts.as_array().cloned().unwrap_or_default();
        keep.lock().unwrap().extend(alerts.into_iter().map(|alert| (head.to_owned(), alert)));
    });
    (address, posted)
}

fn first_post(posted: &Posted, alert: &str) -> (String, Value) {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = posted.lock().unwrap().iter().find(|(_, a)| a["labels"]["alertname"] == alert).cloned();
        if let Some(found) = found {
            return found;
        }
        assert!(Instant::now() < end, "{alert} was never told: {:?}", posted.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_prometheus_file_brings_rules_and_alertmanagers_and_is_reloaded_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let ((one, told_one), (two, told_two)) = (alertmanager(), alertmanager());
    let file = |alertmanager: SocketAddr, jobs: &str| {
        format!(
            "global: {{evaluation_interval: 250ms, external_labels: {{dc: eu, replica: a}}}}\nrule_files: ['*.rules.yml']\nalerting:\n  \
             alert_relabel_configs: [{{action: labeldrop, regex: replica}}]\n  alertmanagers:\n  - path_prefix: /am\n    \
             basic_auth: {{username: u, password: p}}\n    file_sd_configs: [{{files: [am.json]}}]\n    static_configs: [{{targets: ['{alertmanager}']}}]\n    \
             relabel_configs: [{{action: drop, source_labels: [__address__], regex: nobody.*}}]\n\
             scrape_configs: [{jobs}]\n"
        )
    };
    let rule = |name: &str| format!("groups:\n- name: {name}\n  rules:\n  - {{alert: '{name}', expr: vector(1)}}\n");
    write("am.json", "[{\"targets\": [\"nobody:1\"]}]");
    write("a.rules.yml", &rule("A"));
    let job = "{job_name: x, static_configs: [{targets: ['127.0.0.1:1', '127.0.0.1:2']}]}";
    write("prometheus.yml", &file(one, job));
    let path = dir.path().join("prometheus.yml");
    let data = dir.path().join("data");
    let server = Server::start(&data, &["--no-collect", "--prometheus-config", path.to_str().unwrap()]);
    let (head, alert) = first_post(&told_one, "A");
    assert!(head.starts_with("POST /am/api/v2/alerts ") && head.contains("Basic dTpw"), "{head}");
    assert_eq!((&alert["labels"]["dc"], &alert["labels"]["replica"]), (&Value::from("eu"), &Value::Null), "{alert}");
    let since = || server.get("/api/v1/alerts").json()["data"]["alerts"][0]["activeAt"].clone();
    let targets = || {
        let shown = server.get("/api/v1/targets?state=active").json();
        let targets = shown["data"]["activeTargets"].as_array().cloned().unwrap_or_default();
        let mut out: Vec<String> =
            targets.iter().map(|t| t["scrapeUrl"].as_str().unwrap_or("").replace("http://127.0.0.1:", "")).collect();
        out.sort();
        out
    };
    let (began, scraped) = (since(), ["1/metrics", "2/metrics"]);
    let eventually = |what: &str, is: &dyn Fn() -> bool| {
        let end = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < end, "{what} did not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    eventually("the targets", &|| targets() == scraped);
    let reload = || server.client().post("/-/reload", "text/plain", b"").unwrap();
    let shown = || {
        let text = server.get("/api/v1/status/config").json()["data"]["yaml"].as_str().unwrap().to_owned();
        let runtime = server.get("/api/v1/status/runtimeinfo").json()["data"].clone();
        (text, runtime["reloadConfigSuccess"].clone(), runtime["lastConfigTime"].clone())
    };
    let (first, good, since_first) = shown();
    assert!(first.contains("\"job_name\": \"x\"") && first.contains(&one.to_string()) && good == true, "{first}");
    // One fault in one file, and nothing of the others is taken.
    let jobs = "{job_name: x, scrape_interval: 30s, static_configs: [{targets: ['127.0.0.1:2']}]}, {job_name: y, static_configs: [{targets: ['127.0.0.1:3']}]}";
    write("prometheus.yml", &file(two, jobs));
    write("b.rules.yml", "groups:\n- name: B\n  rules:\n  - {alert: B, expr: 'sum('}\n");
    let refused = reload();
    assert_eq!(refused.status, 500);
    let why = refused.text();
    assert!(why.contains("b.rules.yml:4:22: group \"B\", rule 1, \"B\": could not parse expression"), "{why}");
    assert!(why.contains("what was in force before stays"), "{why}");
    assert_eq!(targets(), scraped);
    assert_eq!(shown(), (first, false.into(), since_first.clone()));
    let urls = || server.get("/api/v1/alertmanagers").json()["data"]["activeAlertmanagers"].clone();
    assert_eq!(urls()[0]["url"], format!("http://{one}/am/api/v2/alerts"));
    write("b.rules.yml", &rule("B"));
    let pid = i32::try_from(server.pid()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    first_post(&told_two, "B");
    eventually("the new targets", &|| targets() == ["2/metrics", "3/metrics"]);
    eventually("the other Alertmanager alone", &|| {
        let urls = urls();
        urls.as_array().map(Vec::len) == Some(1) && urls[0]["url"] == format!("http://{two}/am/api/v2/alerts")
    });
    let (text, good, since_second) = shown();
    assert!(text.contains("\"job_name\": \"y\"") && !text.contains(&one.to_string()), "{text}");
    assert!(!text.contains("\"p\"") && good == true && since_second.as_str() > since_first.as_str(), "{text}");
    assert_eq!(since(), began, "the alert of a group that did not change goes on");
    write("prometheus.yml", &format!("{}remote_read: []\n", file(two, jobs)));
    let taken = reload();
    let text = taken.text();
    assert_eq!(taken.status, 200, "{text}");
    assert!(text.starts_with("2 rule groups in force\n2 scrape jobs in force\nwarning: "), "{text}");
    assert!(text.contains("remote_read: `remote_read` is not supported"), "{text}");
    assert!(server.stop().0.success());
}

#[test]
fn rules_run_over_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"), &["--no-collect"]);
    let path = dir.path().join("rules.yml");
    let text = "groups:\n- name: g\n  rules:\n  - {record: 'half:value', expr: 'vector(time()) % 600', labels: {by: rule}}\n  \
                - {alert: Half, expr: '(vector(time()) % 600) >= 300', for: 1m, annotations: {s: '{{ $value }}'}}\n  \
                - {alert: Never, expr: vector(1) > 2}\n";
    std::fs::write(&path, text).unwrap();
    let (file, url) = (path.to_str().unwrap(), format!("http://{}", server.http));
    let out = rules(&["backtest", file, "--from", "0", "--to", "3599", "--url", &url, "--format", "json"]);
    let found: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    let episodes = found["episodes"].as_array().unwrap();
    assert_eq!(episodes.len(), 6, "{found}");
    assert_eq!(
        (&episodes[0]["fired_at"], &episodes[0]["resolved_at"]),
        (&"1970-01-01T00:06:00Z".into(), &"1970-01-01T00:10:00Z".into())
    );
    assert_eq!((&episodes[0]["annotations"]["s"], &episodes[5]["resolved_at"]), (&"360".into(), &Value::Null));
    let out = rules(&["backtest", file, "--from", "0", "--to", "3599", "--url", &url]);
    let table = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && table.contains("(6 rows)") && table.contains("never fired: Never"), "{table}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60 * 60;
    let (from, to) = ((now - 3600).to_string(), now.to_string());
    let out = rules(&["backfill", file, "--from", &from, "--to", &to, "--url", &url]);
    assert!(out.status.success(), "{out:?}");
    let answer = server
        .get(&format!("/api/v1/query?query=count_over_time(half:value{{by=%22rule%22}}[2h])&time={now}"))
        .json();
    assert_eq!(answer["data"]["result"][0]["value"][1], "61", "{answer}");
    let out = rules(&["backtest", file, "--from", "0", "--to", "60", "--url", "http://127.0.0.1:9"]);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("no answer of"), "{out:?}");
}
