//! Joins what scrapes with what answers `/api/v1/targets`.

use std::sync::Arc;

use collector::prometheus::{Pools, config::Span, scrape_pool::PoolState, target::Target};
use query::http::prometheus::targets::{ActiveTarget, ScrapePool, ScrapeTargets, Scraper, TargetFamily};
use storage::model::{Labels, TenantId};

struct Joined(Vec<Arc<Pools>>);

/// All scraping sources as one.
pub fn of(sources: Vec<(String, Arc<Pools>)>) -> Scraper {
    Scraper(Some(Arc::new(Joined(sources.into_iter().map(|(_, pools)| pools).collect()))))
}

impl Joined {
    fn of(&self, tenant: &TenantId) -> impl Iterator<Item = Arc<PoolState>> {
        self.0.iter().filter(move |source| source.tenant() == *tenant).flat_map(|source| source.all())
    }
}

impl ScrapeTargets for Joined {
    fn pools(&self, tenant: &TenantId) -> Vec<ScrapePool> {
        let node = collector::node_name();
        let pools = self.of(tenant);
        pools
            .map(|pool| ScrapePool {
                name: pool.name.clone(),
                active: pool.active().iter().map(|t| active(t, &node)).collect(),
                dropped: pool.dropped(),
                dropped_total: pool.dropped_total(),
            })
            .collect()
    }

    fn metadata(&self, tenant: &TenantId, each: &mut dyn FnMut(&Labels, &TargetFamily<'_>)) {
        for pool in self.of(tenant) {
            for target in pool.active() {
                for (metric, told) in target.families.lock().iter() {
                    let (metric_type, help, unit) = (told.metric_type, told.help.as_str(), told.unit.as_str());
                    each(&target.labels, &TargetFamily { metric, metric_type, help, unit });
                }
            }
        }
    }
}

fn active(target: &Target, node: &str) -> ActiveTarget {
    let status = target.status.lock().clone();
    ActiveTarget {
        discovered_labels: target.discovered.lock().clone(),
        labels: target.labels.clone(),
        global_url: global(&target.url, node),
        url: target.url.clone(),
        last_error: status.last_error,
        last_scrape: status.last_scrape,
        last_duration: status.last_duration,
        health: status.health.name(),
        interval: Span(target.interval).to_string(),
        timeout: Span(target.timeout).to_string(),
    }
}

/// The address with this machine's name for its loopback.
fn global(url: &str, node: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let is_end = |rest: &str| rest.is_empty() || rest.starts_with([':', '/', '?']);
    let local = ["localhost", "127.0.0.1", "[::1]"];
    match local.iter().find_map(|l| rest.strip_prefix(l).filter(|r| is_end(r))) {
        Some(after) => format!("{scheme}://{node}{after}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_loopback_is_named_for_others() {
        assert_eq!(super::global("http://localhost:9100/metrics?a=b", "n"), "http://n:9100/metrics?a=b");
        assert_eq!(super::global("https://[::1]/m", "n"), "https://n/m");
        assert_eq!(super::global("http://localhosts:1/", "n"), "http://localhosts:1/");
    }
}
