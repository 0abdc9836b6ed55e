//! Source: syslog over UDP, TCP, TLS and Unix sockets.
//!
//! **For** messages of RFC 5424 and RFC 3164 from rsyslog, syslog-ng, routers and `logger`, with the framings of RFC 6587.
//! **Not for** what a message's text means (transforms do that).
//!
//! [`receive`] cuts messages and queues them; one task makes rows of them and delivers batches in order, each until the sink
//! has it. Syslog has no answers: a sender of a stream is held back by not being read, a datagram that finds no room in
//! the queue is counted and gone. What is queued when the process is killed is lost.
//!
//! The limits of the tenant hold here too: beyond its rates rows wait (and senders with them, as far as they can), and rows
//! of streams beyond its number of streams are counted and gone.
//!
//! # Labels of a record
//! Stream labels: those of the configuration, `host` (the message's, else the peer's address, else this machine), `app`,
//! `service_name` (by Loki's rule, so `app`). Structured metadata: `facility`, `pid`, `msgid`, `source_ip`, and of
//! structured data `id.name`.

mod config;
pub mod counters;
mod receive;
mod rows;

use std::{
    io,
    os::unix::net::{UnixDatagram, UnixListener},
    sync::Arc,
};

use pipeline::{
    Signals, Source, SourceContext, SourceError,
    codec::syslog::{UtcOffset, frame::Frame},
};
use storage::model::{Labels, TenantId};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

pub use config::{Config, ConfigError, TlsConfig};
use counters::{Counters, Transport};
use receive::{Listener, Stream};

use crate::tenants::Tenants;

/// Messages waiting to become rows, and their bytes.
const QUEUE_MESSAGES: usize = 16_384;
const QUEUE_BYTES: usize = 16 << 20;
/// What a waiting message takes besides its bytes.
const MESSAGE_OVERHEAD: usize = 128;

/// Bound sockets, ready to run.
#[derive(Debug)]
pub struct Syslog {
    tcp: Option<std::net::TcpListener>,
    udp: Option<std::net::UdpSocket>,
    tls: Option<(TlsAcceptorBox, std::net::TcpListener)>,
    unix: Option<UnixDatagram>,
    unix_stream: Option<UnixListener>,
    files: Vec<config::SocketFile>,
    labels: Labels,
    tenant: TenantId,
    utc_offset: UtcOffset,
    message_bytes_max: usize,
    connections_max: usize,
    counters: Arc<Counters>,
    tenants: Arc<Tenants>,
}

/// Addresses that were bound, for tests that ask for port 0.
#[derive(Debug, Default)]
pub struct Bound {
    pub tcp: Option<std::net::SocketAddr>,
    pub udp: Option<std::net::SocketAddr>,
    pub tls: Option<std::net::SocketAddr>,
}

/// Says nothing of itself.
pub(crate) struct TlsAcceptorBox(TlsAcceptor);

impl std::fmt::Debug for TlsAcceptorBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsAcceptor")
    }
}

impl Syslog {
    pub fn bound(&self) -> Bound {
        let tcp = |l: &std::net::TcpListener| l.local_addr().ok();
        Bound {
            tcp: self.tcp.as_ref().and_then(tcp),
            udp: self.udp.as_ref().and_then(|s| s.local_addr().ok()),
            tls: self.tls.as_ref().and_then(|(_, l)| tcp(l)),
        }
    }

    fn listeners(&mut self) -> io::Result<Vec<Listener>> {
        let mut out = Vec::new();
        if let Some(l) = self.tcp.take() {
            out.push(Listener::Stream(Stream::Tcp(tokio::net::TcpListener::from_std(l)?)));
        }
        if let Some((acceptor, l)) = self.tls.take() {
            out.push(Listener::Stream(Stream::Tls(tokio::net::TcpListener::from_std(l)?, acceptor.0)));
        }
        if let Some(l) = self.unix_stream.take() {
            l.set_nonblocking(true)?;
            out.push(Listener::Stream(Stream::Unix(tokio::net::UnixListener::from_std(l)?)));
        }
        if let Some(s) = self.udp.take() {
            out.push(Listener::Udp(tokio::net::UdpSocket::from_std(s)?));
        }
        if let Some(s) = self.unix.take() {
            s.set_nonblocking(true)?;
            out.push(Listener::Datagrams(tokio::net::UnixDatagram::from_std(s)?));
        }
        Ok(out)
    }
}

#[async_trait::async_trait]
impl Source for Syslog {
    async fn run(mut self: Box<Self>, ctx: SourceContext) -> Result<(), SourceError> {
        let name = ctx.name.clone();
        let failed = |reason: String| SourceError { name: name.clone(), reason };
        let listeners = self.listeners().map_err(|e| failed(e.to_string()))?;
        let (queue, messages) = Queue::new(self.counters.clone());
        // Ends the listeners when this future is dropped as well.
        let stop = ctx.stop.child_token();
        let _stop_listeners = stop.clone().drop_guard();
        let limits = receive::Limits { message_bytes: self.message_bytes_max, connections: self.connections_max };
        let mut tasks = JoinSet::new();
        for listener in listeners {
            tasks.spawn(receive::listen(listener, limits, queue.clone(), stop.clone()));
        }
        drop(queue);
        let _files = self.files;
        let rows = rows::Rows::new(self.labels, self.tenant, self.utc_offset, self.counters, self.tenants);
        let mut work = std::pin::pin!(rows.deliver_all(messages, &ctx));
        loop {
            tokio::select! {
                () = &mut work => break,
                Some(ended) = tasks.join_next() => {
                    if let Err(panic) = ended {
                        return Err(failed(format!("a listener failed: {panic}")));
                    }
                }
            }
        }
        // Where the pipeline stopped first, what they still hold is counted as lost.
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    fn signals(&self) -> Signals {
        Signals::LOGS
    }
}

/// A message as it came.
struct Raw {
    frame: Frame,
    peer: Option<Arc<str>>,
    _room: OwnedSemaphorePermit,
}

/// Where listeners put messages. It ends when the last of them does.
#[derive(Clone)]
struct Queue {
    messages: mpsc::Sender<Raw>,
    room: Arc<Semaphore>,
    counters: Arc<Counters>,
}

impl Queue {
    fn new(counters: Arc<Counters>) -> (Queue, mpsc::Receiver<Raw>) {
        let (messages, receiver) = mpsc::channel(QUEUE_MESSAGES);
        (Queue { messages, room: Arc::new(Semaphore::new(QUEUE_BYTES)), counters }, receiver)
    }

    fn cost(frame: &Frame) -> u32 {
        u32::try_from(frame.bytes.len() + MESSAGE_OVERHEAD).unwrap_or(u32::MAX).min(QUEUE_BYTES as u32)
    }

    /// Waits for room. `false`: nobody takes messages any more.
    async fn put(&self, frame: Frame, transport: Transport, peer: Option<&Arc<str>>) -> bool {
        self.counters.received(transport);
        let Ok(room) = self.room.clone().acquire_many_owned(Self::cost(&frame)).await else { return false };
        let sent = self.messages.send(Raw { frame, peer: peer.cloned(), _room: room }).await;
        if sent.is_err() {
            Counters::add(&self.counters.lost, 1);
        }
        sent.is_ok()
    }

    /// For senders that cannot be held back: what finds no room is counted and gone.
    fn offer(&self, frame: Frame, transport: Transport, peer: Option<&Arc<str>>) {
        self.counters.received(transport);
        let room = self.room.clone().try_acquire_many_owned(Self::cost(&frame)).ok();
        let sent = room.and_then(|room| self.messages.try_send(Raw { frame, peer: peer.cloned(), _room: room }).ok());
        if sent.is_none() {
            Counters::add(&self.counters.overrun, 1);
        }
    }
}
