//! `dns_sd_configs`: A and AAAA as this system resolves names; SRV, MX and NS asked of the name servers.

use std::{net::IpAddr, time::Duration};

use storage::model::Labels;

use super::{
    Publisher, TargetGroup, host_port, refresh,
    resolver::{self, Answer},
};
use crate::prometheus::{
    config::{DnsSd, DnsType},
    job::Findings,
};

const REFRESH: Duration = Duration::from_secs(30);
/// For one name.
const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct DnsDiscovery {
    names: Vec<String>,
    kind: DnsType,
    port: u16,
    refresh: Duration,
}

impl DnsDiscovery {
    pub(in crate::prometheus) fn new(config: &DnsSd, at: &mut Findings<'_>) -> DnsDiscovery {
        if config.names.is_empty() {
            at.error("names", "names no name");
        }
        if config.kind != DnsType::Srv && config.port.is_none() {
            at.error("port", "is needed for all types but SRV");
        }
        DnsDiscovery {
            names: config.names.clone(),
            kind: config.kind,
            port: config.port.unwrap_or(0),
            refresh: refresh(config.refresh_interval, REFRESH, at),
        }
    }

    pub async fn run(&self, publisher: &Publisher) {
        let mut known: Vec<TargetGroup> =
            self.names.iter().map(|n| TargetGroup { source: n.clone(), ..TargetGroup::default() }).collect();
        loop {
            for (name, group) in self.names.iter().zip(&mut known) {
                let asked = tokio::time::timeout(TIMEOUT, self.ask(name)).await;
                match asked.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}"))) {
                    Ok(targets) => group.targets = targets,
                    Err(e) => publisher.failed(name, &e),
                }
            }
            publisher.tell(known.clone());
            tokio::time::sleep(self.refresh).await;
        }
    }

    async fn ask(&self, name: &str) -> Result<Vec<Labels>, String> {
        let mut out = match self.kind {
            DnsType::A | DnsType::Aaaa => {
                let found = tokio::net::lookup_host((name, self.port)).await.map_err(|e| e.to_string())?;
                let wanted = |ip: &IpAddr| ip.is_ipv4() == (self.kind == DnsType::A);
                let target = |ip: IpAddr| {
                    Labels::from_pairs([
                        ("__address__", host_port(&ip.to_string(), self.port)),
                        ("__meta_dns_name", name.to_owned()),
                    ])
                };
                found.map(|a| a.ip()).filter(wanted).map(target).collect()
            }
            DnsType::Srv => self.records(name, resolver::SRV).await?,
            DnsType::Mx => self.records(name, resolver::MX).await?,
            DnsType::Ns => self.records(name, resolver::NS).await?,
        };
        out.sort();
        out.dedup();
        Ok(out)
    }

    async fn records(&self, name: &str, kind: u16) -> Result<Vec<Labels>, String> {
        let answers = resolver::Resolver::of_system().await?.ask(name, kind).await?;
        Ok(answers.into_iter().map(|a| target(name, a, self.port)).collect())
    }
}

fn target(name: &str, answer: Answer, port: u16) -> Labels {
    let mut out = Labels::from_pairs([("__meta_dns_name", name)]);
    let rooted = |host: &str| format!("{host}.");
    match answer {
        Answer::Srv { target, port } => {
            out.set("__address__", host_port(&target, port));
            out.set("__meta_dns_srv_record_target", rooted(&target));
            out.set("__meta_dns_srv_record_port", port.to_string());
        }
        Answer::Mx(host) => {
            out.set("__address__", host_port(&host, port));
            out.set("__meta_dns_mx_record_target", rooted(&host));
        }
        Answer::Ns(host) => {
            out.set("__address__", host_port(&host, port));
            out.set("__meta_dns_ns_record_target", rooted(&host));
        }
    }
    out
}
