//! Stands between us and the S3 server, counts, and breaks things: errors, resets, answers cut short, answers lost after the
//! server has done its work, and requests that reach it long after we have given up on them.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use storage::vfs::sim::Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Status500,
    SlowDown,
    /// Closed before the server hears of it.
    Reset,
    /// The server does it, we never learn.
    AnswerLost,
    /// Half of the answer's body.
    Truncated,
    /// Closed at once; the server gets it a little later.
    Late,
}

pub const FAULTS: [Fault; 6] =
    [Fault::Status500, Fault::SlowDown, Fault::Reset, Fault::AnswerLost, Fault::Truncated, Fault::Late];

#[derive(Default)]
pub struct Shared {
    /// Requests in a thousand that something happens to.
    pub per_mille: AtomicU32,
    /// Which of [`FAULTS`], counted from one; 0 any.
    only: AtomicUsize,
    /// Nothing gets through.
    pub cut: AtomicBool,
    pub requests: AtomicU64,
    pub faults: [AtomicU64; 6],
}

pub struct Proxy {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
}

impl Proxy {
    pub fn start(server: SocketAddr, seed: u64) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let proxy = Proxy { address: listener.local_addr().expect("bound"), shared: Arc::default() };
        let shared = proxy.shared.clone();
        std::thread::spawn(move || {
            let mut rng = Rng::new(seed);
            for client in listener.incoming().map_while(Result::ok) {
                let (shared, dice) = (shared.clone(), rng.next_u64());
                std::thread::spawn(move || {
                    let _ = serve(client, server, &shared, dice);
                });
            }
        });
        proxy
    }

    pub fn faulty(&self, per_mille: u32) {
        self.shared.per_mille.store(per_mille, Ordering::SeqCst);
    }

    /// Nothing but this from now on.
    pub fn only(&self, fault: Fault) {
        self.shared.only.store(place(fault) + 1, Ordering::SeqCst);
    }

    /// How often that has happened.
    pub fn count(&self, fault: Fault) -> u64 {
        self.shared.faults[place(fault)].load(Ordering::SeqCst)
    }

    /// Whatever gives faults, then cut or whole again.
    pub fn cut(&self, cut: bool) {
        self.shared.cut.store(cut, Ordering::SeqCst);
    }

    pub fn told(&self) -> String {
        let all: Vec<String> = FAULTS.iter().map(|f| format!("{f:?} {}", self.count(*f))).collect();
        format!("{} requests, {}", self.shared.requests.load(Ordering::SeqCst), all.join(", "))
    }
}

fn place(fault: Fault) -> usize {
    FAULTS.iter().position(|f| *f == fault).expect("all are listed")
}

/// One request of a connection; then it is closed, which HTTP allows.
fn serve(mut client: TcpStream, server: SocketAddr, shared: &Shared, dice: u64) -> io::Result<()> {
    if shared.cut.load(Ordering::SeqCst) {
        return Ok(());
    }
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (head, body) = read_message(&mut client)?;
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let mut rng = Rng::new(dice);
    let only = shared.only.load(Ordering::SeqCst).checked_sub(1);
    let fault =
        rng.chance(shared.per_mille.load(Ordering::SeqCst)).then(|| only.unwrap_or_else(|| rng.below(FAULTS.len())));
    if let Some(i) = fault {
        shared.faults[i].fetch_add(1, Ordering::SeqCst);
    }
    let fault = fault.map(|i| FAULTS[i]);
    match fault {
        Some(Fault::Reset) => return Ok(()),
        Some(Fault::Status500) => return refuse(&mut client, "500 Internal Server Error", "InternalError"),
        Some(Fault::SlowDown) => return refuse(&mut client, "503 Service Unavailable", "SlowDown"),
        Some(Fault::Late) => {
            drop(client);
            std::thread::sleep(Duration::from_millis(20 + rng.below(400) as u64));
            forward(server, &head, &body)?;
            return Ok(());
        }
        Some(Fault::AnswerLost) => {
            forward(server, &head, &body)?;
            return Ok(());
        }
        Some(Fault::Truncated) | None => {}
    }
    let answer = forward(server, &head, &body)?;
    let at = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |p| p + 4);
    let end = if fault.is_some() { at + (answer.len() - at) / 2 } else { answer.len() };
    client.write_all(&answer[..end])
}

fn refuse(client: &mut TcpStream, status: &str, code: &str) -> io::Result<()> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>made up</Message></Error>");
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nConnection: close\r\n");
    write!(client, "{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn forward(server: SocketAddr, head: &[u8], body: &[u8]) -> io::Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(server)?;
    upstream.set_read_timeout(Some(Duration::from_secs(60)))?;
    // One request a connection, so that the end of the answer is the end of the stream.
    let mut request = head[..head.len() - 2].to_vec();
    request.extend_from_slice(b"Connection: close\r\n\r\n");
    request.extend_from_slice(body);
    upstream.write_all(&request)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

/// Head (with its empty line) and body of a request.
fn read_message(client: &mut TcpStream) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut got = Vec::new();
    let mut piece = [0; 16 << 10];
    let head_end = loop {
        if let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        let n = client.read(&mut piece)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        got.extend_from_slice(&piece[..n]);
    };
    let mut body = got.split_off(head_end);
    let head = String::from_utf8_lossy(&got).to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    let have = body.len();
    body.resize(length, 0);
    if have < length {
        client.read_exact(&mut body[have..])?;
    }
    Ok((got, body))
}
