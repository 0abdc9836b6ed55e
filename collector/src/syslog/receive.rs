//! Sockets to messages.

use std::{collections::HashMap, io, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use pipeline::codec::syslog::frame::{Frame, Frames};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpListener, UdpSocket, UnixDatagram, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    Queue,
    counters::{Counters, Transport},
};

/// Bytes of the largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// Room for one read of a connection.
const READ_BYTES: usize = 8 << 10;
/// What a client gets for the TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Pause after a socket failed, for example without file descriptors.
const PAUSE: Duration = Duration::from_millis(100);
/// Datagrams still taken from the kernel at a stop.
const LAST_DATAGRAMS_MAX: usize = 10_000;
/// Addresses of peers kept as text.
const PEERS_MAX: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub message_bytes: usize,
    pub connections: usize,
}

pub(super) enum Listener {
    Stream(Stream),
    Udp(UdpSocket),
    Datagrams(UnixDatagram),
}

pub(super) enum Stream {
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Unix(UnixListener),
}

/// Listens until `stop`. What was read by then is queued.
pub(super) async fn listen(listener: Listener, limits: Limits, queue: Queue, stop: CancellationToken) {
    match listener {
        Listener::Stream(stream) => accept_all(stream, limits, queue, stop).await,
        Listener::Udp(socket) => udp(socket, limits, &queue, stop).await,
        Listener::Datagrams(socket) => datagrams(socket, limits, &queue, stop).await,
    }
}

async fn accept_all(stream: Stream, limits: Limits, queue: Queue, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&stream, &slots) => accepted,
        };
        match accepted {
            Ok((socket, slot)) => {
                let (queue, stop) = (queue.clone(), stop.clone());
                let acceptor = match &stream {
                    Stream::Tls(_, acceptor) => Some(acceptor.clone()),
                    _ => None,
                };
                connections.spawn(async move {
                    let counters = queue.counters.clone();
                    if let Err(e) = serve(socket, acceptor, limits, &queue, stop).await {
                        // Peers that vanish are everyday.
                        tracing::debug!(error = %e, "syslog connection failed");
                        Counters::add(&counters.connection_errors, 1);
                    }
                    drop(slot);
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a syslog connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

enum Socket {
    Tcp(tokio::net::TcpStream, IpAddr),
    Unix(tokio::net::UnixStream),
}

async fn accept(stream: &Stream, slots: &Arc<Semaphore>) -> io::Result<(Socket, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let socket = match stream {
        Stream::Tcp(l) | Stream::Tls(l, _) => {
            let (socket, peer) = l.accept().await?;
            Socket::Tcp(socket, peer.ip().to_canonical())
        }
        Stream::Unix(l) => Socket::Unix(l.accept().await?.0),
    };
    Ok((socket, slot))
}

async fn serve(
    socket: Socket,
    acceptor: Option<TlsAcceptor>,
    limits: Limits,
    queue: &Queue,
    stop: CancellationToken,
) -> io::Result<()> {
    match (socket, acceptor) {
        (Socket::Unix(socket), _) => read(socket, Transport::Unix, None, limits, queue, stop).await,
        (Socket::Tcp(socket, peer), None) => {
            let peer = Arc::from(peer.to_string());
            read(socket, Transport::Tcp, Some(&peer), limits, queue, stop).await
        }
        (Socket::Tcp(socket, peer), Some(acceptor)) => {
            let peer = Arc::from(peer.to_string());
            let handshake = tokio::time::timeout(HANDSHAKE_MAX, acceptor.accept(socket));
            let socket = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                done = handshake => done.map_err(io::Error::other)??,
            };
            read(socket, Transport::Tls, Some(&peer), limits, queue, stop).await
        }
    }
}

async fn read(
    mut socket: impl AsyncRead + Unpin,
    transport: Transport,
    peer: Option<&Arc<str>>,
    limits: Limits,
    queue: &Queue,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut frames = Frames::new(limits.message_bytes);
    let ended = loop {
        frames.buffer().reserve(READ_BYTES);
        let read = tokio::select! {
            () = stop.cancelled() => break Ok(()),
            read = socket.read_buf(frames.buffer()) => read,
        };
        match read {
            // Most syslog senders close TLS without saying so.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break Ok(()),
            Err(e) => break Err(e),
            Ok(0) => break Ok(()),
            Ok(_) => {}
        }
        while let Some(frame) = frames.next() {
            if !queue.put(frame, transport, peer).await {
                return Ok(());
            }
        }
    };
    if let Some(frame) = frames.last() {
        queue.put(frame, transport, peer).await;
    }
    ended
}

/// One message a datagram.
fn datagram(bytes: &[u8], limits: Limits) -> Option<Frame> {
    let end = bytes.iter().rposition(|b| !matches!(b, 0 | b'\n' | b'\r')).map(|at| at + 1)?;
    let taken = end.min(limits.message_bytes);
    Some(Frame { bytes: Bytes::copy_from_slice(&bytes[..taken]), cut: taken < end })
}

async fn udp(socket: UdpSocket, limits: Limits, queue: &Queue, stop: CancellationToken) {
    let mut bytes = vec![0; DATAGRAM_BYTES_MAX];
    let mut peers: HashMap<IpAddr, Arc<str>> = HashMap::new();
    let mut take = |bytes: &[u8], from: IpAddr| {
        if peers.len() >= PEERS_MAX {
            peers.clear();
        }
        let from = from.to_canonical();
        let peer = peers.entry(from).or_insert_with(|| from.to_string().into());
        if let Some(frame) = datagram(bytes, limits) {
            queue.offer(frame, Transport::Udp, Some(peer));
        }
    };
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => break,
            received = socket.recv_from(&mut bytes) => received,
        };
        match received {
            Ok((len, from)) => take(&bytes[..len], from.ip()),
            Err(e) => {
                tracing::warn!(error = %e, "cannot read from a syslog socket");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    // Asked directly: what came just now is not known to the runtime yet.
    let Ok(socket) = socket.into_std() else { return };
    for _ in 0..LAST_DATAGRAMS_MAX {
        let Ok((len, from)) = socket.recv_from(&mut bytes) else { break };
        take(&bytes[..len], from.ip());
    }
}

/// Writers of a Unix socket are held back by the kernel, so nothing is lost.
async fn datagrams(socket: UnixDatagram, limits: Limits, queue: &Queue, stop: CancellationToken) {
    let mut bytes = vec![0; DATAGRAM_BYTES_MAX.max(limits.message_bytes + 1)];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => break,
            received = socket.recv(&mut bytes) => received,
        };
        match received {
            Ok(len) => {
                if let Some(frame) = datagram(&bytes[..len], limits)
                    && !queue.put(frame, Transport::Unix, None).await
                {
                    return;
                }
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot read from a syslog socket");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    let Ok(socket) = socket.into_std() else { return };
    for _ in 0..LAST_DATAGRAMS_MAX {
        let Ok(len) = socket.recv(&mut bytes) else { break };
        if let Some(frame) = datagram(&bytes[..len], limits) {
            queue.put(frame, Transport::Unix, None).await;
        }
    }
}
