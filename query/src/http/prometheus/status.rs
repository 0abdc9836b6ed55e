//! `/status/*`: what clients ask to know whom they speak to.

use std::time::SystemTime;

use axum::{body::Body, http::Response};

use super::Api;
use crate::{annotations::Annotations, http::envelope};

/// The Prometheus version whose behaviour this follows; Grafana reads it to know what it may ask.
const LIKE_PROMETHEUS: &str = "3.5.0";

pub(super) async fn build_info() -> Response<Body> {
    let data = format!(
        "{{\"version\":\"{LIKE_PROMETHEUS}\",\"revision\":\"sightline-{}\",\"branch\":\"HEAD\",\"buildUser\":\"\",\
         \"buildDate\":\"\",\"goVersion\":\"\"}}",
        env!("CARGO_PKG_VERSION")
    );
    envelope::prometheus_success(&data, &Annotations::default())
}

pub(super) fn flags(api: &Api) -> Response<Body> {
    let data = format!(
        "{{\"query.lookback-delta\":\"{}s\",\"query.max-samples\":\"{}\",\"query.timeout\":\"{}s\"}}",
        api.limits.lookback.as_secs(),
        api.limits.samples_max,
        api.limits.timeout.as_secs()
    );
    envelope::prometheus_success(&data, &Annotations::default())
}

pub(super) fn runtime_info(api: &Api) -> Response<Body> {
    let time =
        |t: SystemTime| chrono::DateTime::<chrono::Utc>::from(t).to_rfc3339_opts(chrono::SecondsFormat::Nanos, true);
    let (start, now) = (time(api.started), time(SystemTime::now()));
    let data = format!(
        "{{\"startTime\":\"{start}\",\"CWD\":\"\",\"hostname\":\"\",\"serverTime\":\"{now}\",\
         \"reloadConfigSuccess\":true,\"lastConfigTime\":\"{start}\",\"corruptionCount\":0,\"goroutineCount\":0,\
         \"GOMAXPROCS\":0,\"GOMEMLIMIT\":0,\"GOGC\":\"\",\"GODEBUG\":\"\",\"storageRetention\":\"\"}}"
    );
    envelope::prometheus_success(&data, &Annotations::default())
}
