//! Which rows a log query names, for those who delete them.

use std::sync::Arc;

use storage::{
    DeleteRequest, Selector,
    model::{Table, TimeRange},
};

use super::{
    ast::LogQuery,
    error::QueryError,
    eval::Context,
    plan::{Pipeline, PipelineFilter},
};

/// The rows that the query would return in the range; `None` if no stream matches.
pub async fn deletion(
    ctx: &Context,
    query: &LogQuery,
    range: TimeRange,
) -> Result<Option<DeleteRequest>, QueryError> {
    let pipeline = Arc::new(Pipeline::new(query)?);
    let streams = ctx.store.streams(&ctx.tenant, &query.matchers, range).await?;
    if streams.is_empty() {
        return Ok(None);
    }
    let labels: Vec<_> = streams.iter().map(|s| s.labels.clone()).collect();
    Ok(Some(DeleteRequest {
        tenant: ctx.tenant.clone(),
        table: Table::Logs,
        selector: Selector::Ids(streams.iter().map(|s| s.id).collect()),
        range,
        filter: PipelineFilter::of(&pipeline, &labels, true),
    }))
}
