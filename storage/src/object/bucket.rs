//! A bucket as the place of parts and logs: its name, how it is reached, how long we try.
//!
//! Credentials and endpoint come from the environment, by the names every S3 tool reads: `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL` (or `AWS_ENDPOINT`), and those of web
//! identities and containers. Addresses are path style; plain HTTP is spoken only to an endpoint that says `http://`.

use std::{fmt, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    prefix::PrefixStore,
};

/// Each request is tried again this often, and for this long, before the caller learns that the bucket is away.
const RETRIES_MAX: usize = 4;
const RETRY_TIME_MAX: Duration = Duration::from_secs(20);
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// One request, answer included: the largest is a part of an upload, 8 MiB.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);

/// `s3://bucket/prefix`: a bucket, and the folder in it that is ours alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketUrl {
    bucket: String,
    /// Without slashes at its ends; may be empty.
    prefix: String,
}

impl BucketUrl {
    pub fn parse(text: &str) -> Result<BucketUrl, String> {
        let wrong = |why: &str| format!("invalid store `{text}`: {why}, expected s3://bucket/prefix");
        let rest = text.strip_prefix("s3://").ok_or_else(|| wrong("unknown scheme"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(plain) {
            return Err(wrong("a bucket's name has 3 to 63 of a-z, 0-9, `.`, `-` and `_`"));
        }
        let prefix = prefix.trim_matches('/');
        let odd = |s: &str| {
            let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'=');
            s.is_empty() || s == "." || s == ".." || !s.bytes().all(fine)
        };
        if prefix.len() > 512 || (!prefix.is_empty() && prefix.split('/').any(odd)) {
            return Err(wrong("a prefix has folders of letters, digits, `.`, `-`, `_` and `=`"));
        }
        Ok(BucketUrl { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        write!(f, "s3://{}{slash}{}", self.bucket, self.prefix)
    }
}

/// A store of objects elsewhere, and what to call it in messages.
#[derive(Clone, Debug)]
pub struct Remote {
    /// For example `s3://bucket/prefix`; the data directory remembers it.
    pub name: String,
    /// Where requests go, if not to the provider's own address.
    pub endpoint: Option<String>,
    pub store: Arc<dyn ObjectStore>,
    /// How often the owner of the store says that it is alive.
    pub beat: Duration,
}

const BEAT: Duration = Duration::from_secs(5);

impl Remote {
    pub fn new(name: impl Into<String>, store: Arc<dyn ObjectStore>) -> Remote {
        Remote { name: name.into(), endpoint: None, store, beat: BEAT }
    }

    /// The bucket with what the environment says. Does no IO.
    pub fn from_env(url: &BucketUrl) -> Result<Remote, object_store::Error> {
        let builder = AmazonS3Builder::from_env().with_bucket_name(&url.bucket);
        let get = |key: AmazonS3ConfigKey| builder.get_config_value(&key);
        let endpoint = std::env::var("AWS_ENDPOINT_URL_S3").ok().or_else(|| get(AmazonS3ConfigKey::Endpoint));
        let plain = endpoint.as_deref().is_some_and(|e| e.starts_with("http://"));
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: BACKOFF_FIRST, max_backoff: BACKOFF_MAX, base: 3.0 },
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_TIME_MAX,
        };
        let client = ClientOptions::new()
            .with_allow_http(plain)
            .with_timeout(REQUEST_TIME_MAX)
            .with_connect_timeout(CONNECT_TIME_MAX);
        let store = builder.with_client_options(client).with_retry(retry).build()?;
        let store: Arc<dyn ObjectStore> = match url.prefix.as_str() {
            "" => Arc::new(store),
            prefix => Arc::new(PrefixStore::new(store, prefix)),
        };
        Ok(Remote { endpoint, ..Remote::new(url.to_string(), store) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_named_by_bucket_and_prefix() {
        for (text, shown) in [
            ("s3://my-bucket", "s3://my-bucket"),
            ("s3://my-bucket/", "s3://my-bucket"),
            ("s3://my.bucket/a/b=c/", "s3://my.bucket/a/b=c"),
        ] {
            assert_eq!(BucketUrl::parse(text).unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "b",
            "s3:/b",
            "s3://",
            "s3://ab",
            "s3://B/x",
            "s3://abc/../x",
            "s3://abc/a//b",
            "s3://abc/ä",
            "gs://abc",
        ] {
            let e = BucketUrl::parse(bad).unwrap_err();
            assert!(e.contains("expected s3://bucket/prefix"), "{bad}: {e}");
        }
    }
}
