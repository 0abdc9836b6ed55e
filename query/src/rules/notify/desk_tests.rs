//! Grouping and repeats on a clock of numbers; deliveries to receivers on this machine.

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, routing::post};
use parking_lot::Mutex;
use storage::vfs::SystemClock;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    Desk, Notice, Wanted,
    dispatch::Dispatch,
    parse_matchers,
    plan::{self, Plan},
    silence::WireSilence,
    time,
};
use crate::rules::ruler::Discover;

const SECOND: i64 = 1_000;

fn plan(text: &str) -> Result<Plan, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("am.yml");
    std::fs::write(&path, text).unwrap();
    let discover: Discover = Arc::new(|_| Vec::new());
    plan::read(&path, &discover).map_err(|e| e.to_string())
}

fn alert(labels: &[(&str, &str)], starts_at: i64, ends: Option<i64>) -> Notice {
    Notice {
        labels: labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        annotations: [("summary".to_owned(), "it's on".to_owned())].into(),
        starts_at,
        ends_at: ends.unwrap_or(starts_at + 1_000 * 3_600 * SECOND),
        resolved: ends.is_some(),
        generator_url: "http://x/graph".into(),
    }
}

const HOOKS: &str = "route:\n  receiver: all\n  group_by: [job]\n  group_wait: 10s\n  group_interval: 1m\n  repeat_interval: 1h\n  routes:\n  \
    - {matchers: ['severity=~\"page|call\"', 'job!=\"x\"'], receiver: night, continue: true}\n  - {match: {severity: page}, receiver: day, group_by: ['...']}\n\
    receivers:\n- {name: all, webhook_configs: [{url: 'http://h/'}]}\n- {name: night, webhook_configs: [{url: 'http://h/', send_resolved: false}]}\n\
    - {name: day, webhook_configs: [{url: 'http://h/'}]}\n\
    inhibit_rules:\n- {source_matchers: [alertname=Down], target_matchers: [alertname=Slow], equal: [job]}\n";

/// The messages at a time, all delivered: receiver and alert names, resolved ones with a minus.
fn told(d: &mut Dispatch, plan: &Plan, now: i64) -> Vec<String> {
    let due = d.due(plan, now);
    let mut out = Vec::new();
    for message in &due {
        let name = |n: &Notice| format!("{}{}", if n.resolved { "-" } else { "" }, n.labels["alertname"]);
        let names: Vec<String> = message.alerts.iter().map(name).collect();
        out.push(format!("{}: {}", message.receiver, names.join(" ")));
        d.told(message);
        d.finished(&message.group, None);
    }
    out
}

#[test]
fn alerts_are_grouped_repeated_and_ended() {
    let plan = plan(HOOKS).unwrap();
    let mut d = Dispatch::default();
    let a = [("alertname", "A"), ("job", "j")];
    let b = [("alertname", "B"), ("job", "j")];
    d.take(&plan, &[alert(&a, 0, None)], 0);
    assert_eq!((d.next(), told(&mut d, &plan, 9 * SECOND).len()), (Some(10 * SECOND), 0));
    d.take(&plan, &[alert(&b, 5 * SECOND, None)], 5 * SECOND);
    assert_eq!(told(&mut d, &plan, 10 * SECOND), ["all: A B"]);
    assert!(told(&mut d, &plan, 70 * SECOND).is_empty(), "nothing new");
    d.take(&plan, &[alert(&b, 5 * SECOND, Some(80 * SECOND))], 80 * SECOND);
    assert_eq!(told(&mut d, &plan, 130 * SECOND), ["all: A -B"]);
    // The same after a restart: what was told is remembered.
    let saved = serde_json::to_vec(&d.saved()).unwrap();
    let mut d = Dispatch::restore(serde_json::from_slice(&saved).unwrap());
    d.take(&plan, &[alert(&a, 0, None)], 200 * SECOND);
    assert!(told(&mut d, &plan, 200 * SECOND).is_empty());
    let hour = 3_600 * SECOND;
    assert_eq!(told(&mut d, &plan, 130 * SECOND + hour), ["all: A"], "repeated");
    d.take(&plan, &[alert(&a, 0, Some(140 * SECOND + hour))], 140 * SECOND + hour);
    assert_eq!(told(&mut d, &plan, 400 * SECOND + hour), ["all: -A"]);
    assert!(told(&mut d, &plan, 3 * hour).is_empty() && d.groups() == 0);
    d.take(&plan, &[alert(&b, 0, Some(1))], 4 * hour);
    assert!(told(&mut d, &plan, 5 * hour).is_empty(), "the end of what nobody heard of");
}

#[test]
fn routes_inhibition_and_silences_decide_who_hears() {
    let plan = plan(HOOKS).unwrap();
    let mut d = Dispatch::default();
    let page = [("alertname", "P"), ("job", "j"), ("severity", "page")];
    d.take(&plan, &[alert(&page, 0, None)], 0);
    let mut heard = told(&mut d, &plan, 10 * SECOND);
    heard.sort();
    assert_eq!(heard, ["day: P", "night: P"]);
    let slow = [("alertname", "Slow"), ("job", "k")];
    d.take(&plan, &[alert(&slow, 0, None), alert(&[("alertname", "Down"), ("job", "k")], 0, None)], 0);
    assert_eq!(told(&mut d, &plan, 20 * SECOND), ["all: Down"]);
    let quiet = "{\"matchers\":[{\"name\":\"job\",\"value\":\"q\"}],\"startsAt\":\"1970-01-01T00:00:00Z\",\"endsAt\":\"1970-01-01T00:05:00Z\"}";
    d.silences.set(serde_json::from_str(quiet).unwrap(), 0).unwrap();
    d.take(&plan, &[alert(&[("alertname", "Q"), ("job", "q")], 0, None)], 0);
    assert!(told(&mut d, &plan, 30 * SECOND).is_empty());
    assert!(told(&mut d, &plan, 301 * SECOND).contains(&"all: Q".to_owned()));
    // Nobody says any more that it fires.
    d.take(
        &plan,
        &[Notice { ends_at: 310 * SECOND, ..alert(&[("alertname", "Q"), ("job", "q")], 0, None) }],
        301 * SECOND,
    );
    assert_eq!(told(&mut d, &plan, 400 * SECOND), ["all: -Q"]);
}

#[test]
fn what_failed_is_due_again_soon() {
    let plan = plan(HOOKS).unwrap();
    let mut d = Dispatch::default();
    d.take(&plan, &[alert(&[("alertname", "A")], 0, None)], 60 * SECOND);
    let due = d.due(&plan, 60 * SECOND);
    assert_eq!((due.len(), d.due(&plan, 1_000 * SECOND).len()), (1, 0), "one at a time");
    d.finished(&due[0].group, Some(70 * SECOND));
    assert_eq!((d.next(), told(&mut d, &plan, 70 * SECOND).len()), (Some(70 * SECOND), 1));
}

#[test]
fn what_is_not_understood_is_named_with_its_place() {
    for (text, wanted) in [
        (
            "route: {receiver: a}\nreceivers: [{name: a, pagerduty_configs: []}]\n",
            "am.yml:2:23: pagerduty_configs is not supported in a receiver",
        ),
        ("route: {receiver: b}\nreceivers: [{name: a}]\n", "undefined receiver \"b\" used in route"),
        ("receivers: [{name: a}]\n", "no routes provided"),
        (
            "route: {receiver: a, active_time_intervals: [x]}\nreceivers: [{name: a}]\n",
            "active_time_intervals is not supported in a route",
        ),
        ("route: {receiver: a, routes: [{matchers: ['a']}]}\nreceivers: [{name: a}]\n", "bad matcher format: a"),
        (
            "route: {receiver: a}\nreceivers: [{name: a, email_configs: [{to: x@y}]}]\n",
            "no global SMTP smarthost set",
        ),
        (
            "route: {receiver: a}\nreceivers: [{name: a, slack_configs: [{text: '{{ nope }}', api_url: 'http://x'}]}]\n",
            "text: template: 1: function \"nope\" not defined",
        ),
        ("route: {receiver: a}\nreceivers: [{name: a}, {name: a}]\n", "is not unique"),
        ("route: {receiver: a, group_interval: 0s}\nreceivers: [{name: a}]\n", "group_interval cannot be zero"),
    ] {
        let e = plan(text).unwrap_err();
        assert!(e.contains(wanted), "{text}: {e}");
    }
    let texts: Vec<String> =
        parse_matchers("{a=\"x,}\", b!~ c.* ,d=}").unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["a=\"x,}\"", "b!~\"c.*\"", "d=\"\""]);
}

type Bodies = Arc<Mutex<Vec<(String, String)>>>;

async fn http(tasks: &mut JoinSet<()>) -> (String, Bodies) {
    let bodies = Bodies::default();
    let take = |State(b): State<Bodies>, uri: axum::http::Uri, body: String| async move {
        b.lock().push((uri.path().to_owned(), body));
    };
    let app = Router::new().route("/{*rest}", post(take)).with_state(bodies.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (url, bodies)
}

/// One SMTP conversation; true when it asks to go on over TLS.
async fn talk(
    wire: &mut (impl AsyncRead + AsyncWrite + Unpin),
    greets: bool,
    tls: bool,
    seen: &Mutex<Vec<String>>,
) -> bool {
    let (read, mut write) = tokio::io::split(wire);
    let mut lines = BufReader::new(read).lines();
    if greets {
        write.write_all(b"220 here\r\n").await.unwrap();
    }
    let mut in_data = false;
    while let Ok(Some(line)) = lines.next_line().await {
        seen.lock().push(line.clone());
        let word = line.split([' ', ':']).next().unwrap_or("");
        let answer: &str = match word {
            "." if in_data => {
                in_data = false;
                "250 taken\r\n"
            }
            _ if in_data => continue,
            "EHLO" if tls => "250-here\r\n250 STARTTLS\r\n",
            "EHLO" => "250-here\r\n250 AUTH PLAIN LOGIN\r\n",
            "STARTTLS" => {
                write.write_all(b"220 go\r\n").await.unwrap();
                return true;
            }
            "AUTH" => "235 in\r\n",
            "DATA" => {
                in_data = true;
                "354 go\r\n"
            }
            "QUIT" => "221 bye\r\n",
            _ => "250 good\r\n",
        };
        write.write_all(answer.as_bytes()).await.unwrap();
    }
    false
}

async fn smtp(
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    tasks: &mut JoinSet<()>,
) -> (String, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    let lines = seen.clone();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if talk(&mut stream, true, acceptor.is_some(), &lines).await
                && let Some(acceptor) = &acceptor
                && let Ok(mut stream) = acceptor.accept(stream).await
            {
                talk(&mut stream, false, false, &lines).await;
            }
        }
    });
    (address, seen)
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..4_000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_slack_and_mail_are_told_and_silences_are_kept() {
    let mut tasks = JoinSet::new();
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (plain, plain_seen) = smtp(None, &mut tasks).await;
    let (secure, secure_seen) = smtp(Some(acceptor), &mut tasks).await;
    let (url, bodies) = http(&mut tasks).await;
    let text = format!(
        "global: {{smtp_from: 'Sightline <from@x.org>', slack_api_url: '{url}/slack'}}\n\
         route: {{receiver: r, group_by: [job], group_wait: 0s}}\nreceivers:\n- name: r\n  \
         webhook_configs: [{{url: '{url}/hook', max_alerts: 1}}]\n  \
         slack_configs: [{{channel: '#{{{{ .GroupLabels.job }}}}', text: '{{{{ range .Alerts }}}}{{{{ .Annotations.summary }}}};{{{{ end }}}}'}}]\n  \
         email_configs:\n  - {{to: 'a@x.org, b@x.org', smarthost: '{plain}', require_tls: false, auth_username: u, auth_password: p}}\n  \
         - {{to: c@x.org, smarthost: '{secure}', tls_config: {{ca_file: ca.pem}}, headers: {{Subject: 'ü {{{{ .Status }}}}'}}}}\n"
    );
    std::fs::write(dir.path().join("am.yml"), text).unwrap();
    let discover: Discover = Arc::new(|_| Vec::new());
    let plan = plan::read(&dir.path().join("am.yml"), &discover).unwrap_or_else(|e| panic!("{e}"));
    let file = dir.path().join("told.json");
    let desk = Desk::open(plan, Arc::new(SystemClock::new()), "http://here".into(), file.clone());
    let stop = CancellationToken::new();
    tasks.spawn(desk.clone().run(stop.clone()));
    // The desk goes by the real time: alerts of 1970 have ended.
    let now = chrono::Utc::now().timestamp_millis();
    desk.take(&[
        alert(&[("alertname", "A"), ("job", "j")], now, None),
        alert(&[("alertname", "B"), ("job", "j")], now, None),
    ]);
    until("all four", || desk.metrics()[0].value == 4.0).await;
    let mut got = bodies.lock().clone();
    got.sort();
    let hook: serde_json::Value = serde_json::from_str(&got[0].1).unwrap();
    assert_eq!(
        (&hook["version"], &hook["status"], &hook["truncatedAlerts"]),
        (&"4".into(), &"firing".into(), &1.into())
    );
    assert_eq!((&hook["commonLabels"]["job"], &hook["alerts"][0]["labels"]["alertname"]), (&"j".into(), &"A".into()));
    let slack: serde_json::Value = serde_json::from_str(&got[1].1).unwrap();
    assert_eq!((&slack["channel"], &slack["attachments"][0]["text"]), (&"#j".into(), &"it's on;it's on;".into()));
    assert_eq!(slack["attachments"][0]["title"], "[FIRING: 2] j");
    let plain = plain_seen.lock().join("\n");
    for wanted in [
        "AUTH PLAIN AHUAcA==",
        "MAIL FROM:<from@x.org>",
        "RCPT TO:<a@x.org>\nRCPT TO:<b@x.org>",
        "Subject: [FIRING: 2] j",
    ] {
        assert!(plain.contains(wanted), "{wanted}: {plain}");
    }
    let secure = secure_seen.lock().join("\n");
    assert!(secure.contains("STARTTLS\nEHLO") && secure.contains("Subject: =?UTF-8?B?w7wgZmlyaW5n?="), "{secure}");
    let soon = chrono::Utc::now().timestamp_millis() + 60_000;
    let wire = format!(
        "{{\"matchers\":[{{\"name\":\"job\",\"value\":\"j\"}}],\"startsAt\":\"{}\",\"endsAt\":\"{}\",\"comment\":\"c\"}}",
        time(1),
        time(soon)
    );
    let id = desk.silence(serde_json::from_str::<WireSilence>(&wire).unwrap()).await.unwrap();
    let wanted = |silenced| Wanted { matchers: Vec::new(), active: true, silenced, inhibited: true };
    let shown = desk.alerts(&wanted(true));
    assert_eq!((shown.len(), &shown[0]["status"]["silencedBy"][0]), (2, &id.as_str().into()));
    assert!(desk.alerts(&wanted(false)).is_empty() && desk.groups(&wanted(false)).is_empty());
    stop.cancel();
    let again = Desk::open(Plan::default(), Arc::new(SystemClock::new()), String::new(), file);
    assert_eq!(again.silences(&parse_matchers("job=j").unwrap())[0]["id"], id.as_str());
    assert!(again.silences(&parse_matchers("job=k").unwrap()).is_empty());
    assert!(again.unsilence(&id).await && !again.unsilence("nope").await);
}
