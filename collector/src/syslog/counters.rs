//! What a syslog source took and lost: syslog has no answers, so these are the only trace of what is gone.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// How messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
    Unix,
}

impl Transport {
    const ALL: [Transport; 4] = [Transport::Udp, Transport::Tcp, Transport::Tls, Transport::Unix];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
            Transport::Unix => "unix",
        }
    }
}

#[derive(Debug, Default)]
pub struct Counters {
    received: [AtomicU64; Transport::ALL.len()],
    /// Rows the pipeline has.
    pub delivered: AtomicU64,
    /// Datagrams thrown away because the pipeline is behind: UDP has no way to wait.
    pub overrun: AtomicU64,
    /// Rows refused for good, or left when the process stopped.
    pub lost: AtomicU64,
    /// Messages longer than the limit, or without their end, taken as far as they go.
    pub cut: AtomicU64,
    /// Messages with bytes that are not UTF-8, replaced by U+FFFD.
    pub invalid_utf8: AtomicU64,
    /// Messages without priority and time, taken as they are.
    pub unparsed: AtomicU64,
    /// Times too far ahead, replaced by that of arrival.
    pub ahead: AtomicU64,
    /// Rows of streams beyond what the tenant may have.
    pub limited: AtomicU64,
    /// Connections that failed: broken TLS, reset by the peer.
    pub connection_errors: AtomicU64,
}

impl Counters {
    pub(super) fn received(&self, transport: Transport) {
        self.received[transport as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Relaxed);
    }
}

/// A counter's name and where it is.
type Family = (&'static str, fn(&Counters) -> &AtomicU64);

/// Prometheus text of all syslog sources, by name, one family after the other.
pub fn render(sources: &[(String, std::sync::Arc<Counters>)], out: &mut String) {
    if sources.is_empty() {
        return;
    }
    out.push_str("# TYPE collector_syslog_messages_total counter\n");
    for (name, counters) in sources {
        for transport in Transport::ALL {
            let n = counters.received[transport as usize].load(Relaxed);
            let transport = transport.name();
            let _ =
                writeln!(out, "collector_syslog_messages_total{{source=\"{name}\",transport=\"{transport}\"}} {n}");
        }
    }
    let families: [Family; 9] = [
        ("delivered", |c| &c.delivered),
        ("overrun", |c| &c.overrun),
        ("lost", |c| &c.lost),
        ("cut", |c| &c.cut),
        ("invalid_utf8", |c| &c.invalid_utf8),
        ("unparsed", |c| &c.unparsed),
        ("ahead", |c| &c.ahead),
        ("limited", |c| &c.limited),
        ("connection_errors", |c| &c.connection_errors),
    ];
    for (family, counter) in families {
        let _ = writeln!(out, "# TYPE collector_syslog_{family}_total counter");
        for (name, counters) in sources {
            let n = counter(counters).load(Relaxed);
            let _ = writeln!(out, "collector_syslog_{family}_total{{source=\"{name}\"}} {n}");
        }
    }
}
