//! `/format_query` and `/parse_query`: an expression in its one form, and as a tree.

use axum::extract::Request;
use storage::model::json::write_string;

use super::{Answer, Api};
use crate::{
    annotations::Annotations,
    http::{envelope, params::Params},
    promql::{self, print},
};

pub(super) async fn format(_api: Api, request: Request) -> Answer {
    let (params, _) = Params::of(request).await?;
    let text = params.get("query").unwrap_or("");
    let expr = promql::parse(text)?;
    let mut data = String::new();
    write_string(&mut data, &print::pretty(text, &expr));
    Ok(envelope::prometheus_success(&data, &Annotations::default()))
}

pub(super) async fn parse(_api: Api, request: Request) -> Answer {
    let (params, _) = Params::of(request).await?;
    let expr = promql::parse(params.get("query").unwrap_or(""))?;
    Ok(envelope::prometheus_success(&promql::tree_json(&expr).to_string(), &Annotations::default()))
}
