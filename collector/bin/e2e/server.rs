//! The real process under test: started on free ports, killed, started again on the same data.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use super::client::{Answer, Client};

/// The program: this build's, or the one `SIGHTLINE_BIN` names.
pub fn program() -> PathBuf {
    std::env::var_os("SIGHTLINE_BIN").map_or_else(|| env!("CARGO_BIN_EXE_sightline").into(), PathBuf::from)
}

fn command(data: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .args(["--data-dir", &data.to_string_lossy()])
        .args(["--http", "127.0.0.1:0", "--otlp-grpc", "127.0.0.1:0", "--otlp-http", "127.0.0.1:0"])
        // Its rows would be among those that tests count.
        .env("SIGHTLINE_TELEMETRY", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

pub struct Server {
    child: Child,
    pub http: SocketAddr,
    pub otlp_grpc: SocketAddr,
    pub otlp_http: SocketAddr,
}

impl Server {
    /// Starts on free ports without collecting, and waits until it is ready.
    pub fn start(data: &Path, args: &[&str]) -> Server {
        Self::start_with(data, args, &[]).unwrap_or_else(|e| panic!("server did not start: {e}"))
    }

    pub fn start_with(data: &Path, args: &[&str], env: &[(&str, &str)]) -> Result<Server, String> {
        let mut command = command(data);
        command.args(args).envs(env.iter().copied());
        Self::launch(command)
    }

    /// As [`Server::start`]; standard error goes to `log`.
    pub fn start_logged(data: &Path, args: &[String], env: &[(String, String)], log: File) -> Result<Server, String> {
        let mut command = command(data);
        command.args(args).envs(env.iter().cloned()).stderr(log);
        Self::launch(command)
    }

    /// Starts and kills it, ready or not.
    pub fn start_and_kill(data: &Path, args: &[String], env: &[(String, String)], log: File, after: Duration) {
        let mut child = command(data)
            .args(args)
            .envs(env.iter().cloned())
            .stderr(log)
            .stdout(Stdio::null())
            .spawn()
            .expect("the program runs");
        std::thread::sleep(after);
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Starts with OTLP over HTTP at `otlp_http`, which is not on the loopback.
    pub fn start_beyond(data: &Path, otlp_http: &str) -> Server {
        let mut command = Command::new(program());
        command
            .args(["--data-dir", &data.to_string_lossy(), "--no-collect"])
            .args(["--http", "127.0.0.1:0", "--otlp-grpc", "127.0.0.1:0", "--otlp-http", otlp_http])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Self::launch(command).unwrap_or_else(|e| panic!("server did not start: {e}"))
    }

    fn launch(mut command: Command) -> Result<Server, String> {
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let (sender, lines) = mpsc::channel();
        let out = child.stdout.take().expect("stdout is piped");
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut found: [Option<SocketAddr>; 3] = [None; 3];
        let end = Instant::now() + Duration::from_secs(60);
        while found.iter().any(Option::is_none) {
            let line = match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(_) => {
                    let _ = child.kill();
                    let status = child.wait().map_err(|e| e.to_string())?;
                    return Err(format!("no addresses printed, {status}"));
                }
            };
            for (slot, mark) in found.iter_mut().zip(["http://", "OTLP gRPC ", "OTLP HTTP "]) {
                if let Some(at) = line.find(mark) {
                    let rest = &line[at + mark.len()..];
                    let end =
                        rest.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':')).unwrap_or(rest.len());
                    if let (None, Ok(addr)) = (*slot, rest[..end].trim_end_matches('.').parse()) {
                        *slot = Some(addr);
                    }
                }
            }
        }
        // Keep reading, so that the pipe never fills.
        std::thread::spawn(move || for _ in lines {});
        let [Some(http), Some(otlp_grpc), Some(otlp_http)] = found else { unreachable!("loop ends with all") };
        let server = Server { child, http, otlp_grpc, otlp_http };
        server.wait_ready(Duration::from_secs(60));
        Ok(server)
    }

    pub fn client(&self) -> Client {
        Client::new(self.http)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_ready(&self, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            if self.client().get("/ready").is_ok_and(|a| a.status == 200) {
                return;
            }
            assert!(Instant::now() < end, "server is not ready after {limit:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.client().get(path).unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// kill -9.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ctrl-C; waits for the end.
    pub fn stop(mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("the process is ours");
        let status = self.child.wait().expect("the process is ours");
        (status, started.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
