//! A small DNS client for records the system's resolver does not give: SRV, MX, NS. Name servers, search domains and
//! `ndots` are those of `/etc/resolv.conf`; UDP first, TCP for an answer that was cut.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

pub const NS: u16 = 2;
pub const MX: u16 = 15;
pub const SRV: u16 = 33;

/// For one server.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of an answer over UDP, told with EDNS.
const UDP_BYTES_MAX: u16 = 4096;
/// Compression pointers followed in one name.
const JUMPS_MAX: usize = 32;
const SERVERS_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Srv { target: String, port: u16 },
    Mx(String),
    Ns(String),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
    pub ndots: usize,
}

impl Resolver {
    pub async fn of_system() -> Result<Resolver, String> {
        let text = tokio::fs::read_to_string("/etc/resolv.conf").await;
        Ok(Resolver::parse(&text.map_err(|e| format!("cannot read /etc/resolv.conf: {e}"))?))
    }

    pub fn parse(text: &str) -> Resolver {
        let mut out = Resolver { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let ip = words.next().and_then(|w| w.split('%').next()).and_then(|w| w.parse::<IpAddr>().ok());
                    out.servers
                        .extend(ip.map(|ip| SocketAddr::new(ip, 53)).filter(|_| out.servers.len() < SERVERS_MAX));
                }
                Some("search" | "domain") => {
                    out.search = words.take(8).map(|w| w.trim_end_matches('.').to_owned()).collect();
                }
                Some("options") => {
                    let ndots = words.find_map(|w| w.strip_prefix("ndots:")?.parse::<usize>().ok());
                    out.ndots = ndots.unwrap_or(out.ndots).min(15);
                }
                _ => {}
            }
        }
        if out.servers.is_empty() {
            out.servers.push(SocketAddr::from(([127, 0, 0, 1], 53)));
        }
        out
    }

    /// The names to try, in order.
    fn candidates(&self, name: &str) -> Vec<String> {
        if let Some(rooted) = name.strip_suffix('.') {
            return vec![rooted.to_owned()];
        }
        let mut out: Vec<String> = self.search.iter().map(|s| format!("{name}.{s}")).collect();
        let at = if name.matches('.').count() >= self.ndots { 0 } else { out.len() };
        out.insert(at, name.to_owned());
        out
    }

    /// The records of a name; none if it has none.
    pub async fn ask(&self, name: &str, kind: u16) -> Result<Vec<Answer>, String> {
        let mut error = None;
        for candidate in self.candidates(name) {
            let query = query(&candidate, kind, rand_id())?;
            for server in &self.servers {
                match exchange(*server, &query).await.and_then(|answer| read(&answer, &query, kind)) {
                    Ok(found) if found.is_empty() => break,
                    Ok(found) => return Ok(found),
                    Err(e) => error = Some(format!("{candidate} from {server}: {e}")),
                }
            }
        }
        error.map_or(Ok(Vec::new()), Err)
    }
}

/// Not guessable by who does not see the clock's nanoseconds.
fn rand_id() -> u16 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish() as u16
}

fn query(name: &str, kind: u16, id: u16) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(name.len() + 32);
    out.extend(id.to_be_bytes());
    // Recursion desired; one question, one additional record (EDNS).
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.split('.') {
        let len = u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n));
        out.push(len.ok_or_else(|| format!("{name:?} is no domain name"))?);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out.extend([0, 0, 41]);
    out.extend(UDP_BYTES_MAX.to_be_bytes());
    out.extend([0; 6]);
    if out.len() > 300 { Err(format!("{name:?} is too long for a domain name")) } else { Ok(out) }
}

async fn exchange(server: SocketAddr, query: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |e: std::io::Error| e.to_string();
    let late = |_| format!("no answer within {TIMEOUT:?}");
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let udp = async {
        let socket = UdpSocket::bind(any).await.map_err(failed)?;
        socket.connect(server).await.map_err(failed)?;
        socket.send(query).await.map_err(failed)?;
        let mut buffer = vec![0; usize::from(UDP_BYTES_MAX)];
        loop {
            let n = socket.recv(&mut buffer).await.map_err(failed)?;
            // An answer to something else is none.
            if n >= 12 && buffer[..2] == query[..2] {
                buffer.truncate(n);
                return Ok::<_, String>(buffer);
            }
        }
    };
    let answer = timeout(TIMEOUT, udp).await.map_err(late)??;
    if answer[2] & 0x02 == 0 {
        return Ok(answer);
    }
    let tcp = async {
        let mut stream = TcpStream::connect(server).await.map_err(failed)?;
        let mut message = (query.len() as u16).to_be_bytes().to_vec();
        message.extend_from_slice(query);
        stream.write_all(&message).await.map_err(failed)?;
        let len = stream.read_u16().await.map_err(failed)?;
        let mut answer = vec![0; usize::from(len)];
        stream.read_exact(&mut answer).await.map_err(failed)?;
        Ok::<_, String>(answer)
    };
    timeout(TIMEOUT, tcp).await.map_err(late)?
}

/// A position in a message.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, n: usize) -> Result<&[u8], String> {
        let out = self.message.get(self.at..self.at + n).ok_or("the answer is cut off")?;
        self.at += n;
        Ok(out)
    }

    fn u16(&mut self) -> Result<u16, String> {
        let b = self.bytes(2)?;
        Ok(u16::from_be_bytes([b[0], b[1]]))
    }

    fn name(&mut self) -> Result<String, String> {
        let mut out = String::new();
        let (mut at, mut end, mut jumps) = (self.at, None, 0);
        loop {
            let len = *self.message.get(at).ok_or("a name is cut off")?;
            match len {
                0 => {
                    self.at = end.unwrap_or(at + 1);
                    return Ok(out);
                }
                1..=63 => {
                    let label = self.message.get(at + 1..at + 1 + usize::from(len)).ok_or("a name is cut off")?;
                    if !out.is_empty() {
                        out.push('.');
                    }
                    out.push_str(&String::from_utf8_lossy(label));
                    at += 1 + usize::from(len);
                }
                0xc0.. => {
                    let low = *self.message.get(at + 1).ok_or("a name is cut off")?;
                    end.get_or_insert(at + 2);
                    at = usize::from(len & 0x3f) << 8 | usize::from(low);
                    jumps += 1;
                    if jumps > JUMPS_MAX {
                        return Err("a name goes in circles".to_owned());
                    }
                }
                _ => return Err("a name is broken".to_owned()),
            }
            if out.len() > 255 {
                return Err("a name is too long".to_owned());
            }
        }
    }
}

/// The records of this type in an answer, whatever it is an answer to.
pub fn records(message: &[u8], kind: u16) -> Result<Vec<Answer>, String> {
    let id = message.get(..2).ok_or("the answer is cut off")?;
    read(message, id, kind)
}

fn read(message: &[u8], query: &[u8], kind: u16) -> Result<Vec<Answer>, String> {
    let mut r = Reader { message, at: 0 };
    if r.bytes(2)? != &query[..2] {
        return Err("an answer to another question".to_owned());
    }
    let flags = r.u16()?;
    match flags & 15 {
        0 => {}
        // There is no such name.
        3 => return Ok(Vec::new()),
        code => return Err(format!("the name server answers with error {code}")),
    }
    let (questions, answers) = (r.u16()?, r.u16()?);
    r.bytes(4)?;
    for _ in 0..questions {
        r.name()?;
        r.bytes(4)?;
    }
    let mut out = Vec::new();
    for _ in 0..answers {
        r.name()?;
        let found = r.u16()?;
        r.bytes(6)?;
        let len = usize::from(r.u16()?);
        let end = r.at + len;
        if found == kind {
            match kind {
                SRV => {
                    r.bytes(4)?;
                    let port = r.u16()?;
                    out.push(Answer::Srv { target: r.name()?, port });
                }
                MX => {
                    r.bytes(2)?;
                    out.push(Answer::Mx(r.name()?));
                }
                _ => out.push(Answer::Ns(r.name()?)),
            }
        }
        r.at = end;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_searched_for_as_the_system_does() {
        let r = Resolver::parse(
            "# c\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nsearch a.local. b\noptions timeout:1 ndots:2\n",
        );
        assert_eq!(r.servers, ["10.0.0.2:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()]);
        assert_eq!(r.candidates("x.y"), ["x.y.a.local", "x.y.b", "x.y"]);
        assert_eq!(r.candidates("x.y.z"), ["x.y.z", "x.y.z.a.local", "x.y.z.b"]);
        assert_eq!(r.candidates("x."), ["x"]);
        assert_eq!(Resolver::parse("").servers, ["127.0.0.1:53".parse().unwrap()]);
    }

    /// A server that answers once with two SRV records, one of them with a compressed name; cut over UDP.
    #[tokio::test]
    async fn srv_records_are_asked_for_and_a_cut_answer_is_asked_for_again_over_tcp() {
        // One port for both, which another process may have over TCP: then the next.
        let (udp, tcp, at) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let at = udp.local_addr().unwrap();
            if let Ok(tcp) = tokio::net::TcpListener::bind(at).await {
                break (udp, tcp, at);
            }
        };
        let serve = async {
            let mut query = vec![0; 512];
            let (n, from) = udp.recv_from(&mut query).await.unwrap();
            query.truncate(n);
            let mut cut = query.clone();
            cut[2..12].copy_from_slice(&[0x83, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
            udp.send_to(&cut, from).await.unwrap();
            let (mut stream, _) = tcp.accept().await.unwrap();
            let len = stream.read_u16().await.unwrap();
            let mut query = vec![0; usize::from(len)];
            stream.read_exact(&mut query).await.unwrap();
            let question = query.len() - 11;
            let mut answer = query[..question].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0]);
            for (port, name) in [(9100u16, &b"\x01a\xc0\x11"[..]), (9101, b"\x01b\x03net\x00")] {
                answer.extend([0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 9]);
                answer.extend((6 + name.len() as u16).to_be_bytes());
                answer.extend([0, 1, 0, 2]);
                answer.extend(port.to_be_bytes());
                answer.extend(name);
            }
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        };
        let resolver = Resolver { servers: vec![at], search: Vec::new(), ndots: 1 };
        let (answers, ()) = tokio::join!(resolver.ask("_m.x.org", SRV), serve);
        let srv = |target: &str, port| Answer::Srv { target: target.to_owned(), port };
        // At 0x11 of the question stands `org`.
        assert_eq!(answers.unwrap(), [srv("a.org", 9100), srv("b.net", 9101)]);
    }

    #[test]
    fn broken_answers_are_errors() {
        let query = query("a", SRV, 7).unwrap();
        for n in 0..40 {
            let mut answer = query.clone();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 9, 0, 0, 0, 0]);
            answer.extend([0xc0; 40]);
            answer.truncate(n);
            assert!(read(&answer, &query, SRV).is_err(), "{n}");
        }
    }
}
