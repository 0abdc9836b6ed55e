//! The accept loop: any router over HTTP/1.1 and cleartext HTTP/2 on one port.
//!
//! Bounded against slow and many clients: a header must come in time, connections have a limit, idle HTTP/2 peers are
//! pinged. On stop no connection is accepted, requests in flight are finished, and at a deadline the rest is cut.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// Bounds of one listener.
#[derive(Clone, Debug)]
pub struct ListenLimits {
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// From the connection's (or the last answer's) end to the next request's whole header.
    pub header_wait: Duration,
    /// Bytes of one request's header.
    pub header_bytes_max: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// An HTTP/2 peer is pinged when silent for so long, and given up after as long again.
    pub keep_alive: Duration,
    /// What requests in flight get after the stop.
    pub drain: Duration,
}

impl Default for ListenLimits {
    fn default() -> Self {
        ListenLimits {
            connections_max: 4096,
            header_wait: Duration::from_secs(30),
            header_bytes_max: 64 << 10,
            streams_max: 256,
            keep_alive: Duration::from_secs(20),
            drain: Duration::from_secs(5),
        }
    }
}

/// Longest pause after an accept that failed (no file descriptors left, for example).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`, then drains. Returns when every connection is closed.
pub async fn serve(listener: TcpListener, router: Router, limits: ListenLimits, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(limits.connections_max));
    let mut connections = JoinSet::new();
    loop {
        // Finished connections are taken off as we go: the set holds live ones only.
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((stream, slot)) => {
                let (router, limits, stop) = (router.clone(), limits.clone(), stop.clone());
                connections.spawn(async move {
                    connection(stream, router, &limits, stop).await;
                    drop(slot);
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain, drained).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "connections cut: requests still ran at the end of the drain"
        );
        connections.shutdown().await;
    }
}

async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, slot))
}

async fn connection(stream: TcpStream, router: Router, limits: &ListenLimits, stop: CancellationToken) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_wait)
        .max_buf_size(limits.header_bytes_max.max(8192))
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.streams_max)
        // Large requests need a window to flow: 1 MiB a stream, 4 MiB a connection.
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        // Peers that vanish are everyday.
        tracing::debug!(error = %e, "connection ended");
    }
}
