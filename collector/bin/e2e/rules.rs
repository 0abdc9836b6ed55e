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
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().unwrap();
    let told = Told::default();
    let keep = told.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut data = Vec::new();
            let mut buffer = [0; 4096];
            let body = loop {
                let Ok(n @ 1..) = stream.read(&mut buffer) else { break None };
                data.extend_from_slice(&buffer[..n]);
                let text = String::from_utf8_lossy(&data).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|l| {
                    l.to_ascii_lowercase().strip_prefix("content-length: ").and_then(|v| v.parse::<usize>().ok())
                });
                if length.is_some_and(|n| body.len() >= n) {
                    break Some(body.to_owned());
                }
            };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            let Some(Ok(message)) = body.map(|b| serde_json::from_str::<Value>(&b)) else { continue };
            let mut told = keep.lock().unwrap();
            for alert in message["alerts"].as_array().into_iter().flatten() {
                let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
                told.push((text(&alert["labels"]["alertname"]), text(&alert["status"])));
            }
        }
    });
    (address, told)
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
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let rules = "groups:\n- name: g\n  interval: 250ms\n  rules:\n  - {alert: On, expr: vector(1)}\n  \
                 - {alert: Quiet, expr: vector(1), for: 3s, labels: {quiet: 'yes'}}\n  - {alert: Late, expr: vector(1), for: 4s}\n";
    write("rules.yml", rules);
    write(
        "receivers.yml",
        &format!(
            "route: {{receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 300ms, repeat_interval: 1h}}\n\
             receivers:\n- name: hook\n  webhook_configs: [{{url: 'http://{hook}/'}}]\n"
        ),
    );
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
    // What was told is on the disk a moment after the receiver has it.
    std::thread::sleep(Duration::from_millis(300));
    server.kill();
    let server = Server::start(&data, &args);
    until(&told, "Late", "firing");
    let alerts = server.get("/alertmanager/api/v2/alerts?filter=quiet%3Dyes").json();
    assert_eq!(alerts[0]["status"]["state"], "suppressed", "{alerts}");
    assert_eq!(server.get("/alertmanager/api/v2/silences").json()[0]["id"], made.json()["silenceID"]);
    assert_eq!(times(&told, "Quiet", "firing"), 0);
    assert!((1..=2).contains(&times(&told, "On", "firing")), "{:?}", told.lock().unwrap());
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
