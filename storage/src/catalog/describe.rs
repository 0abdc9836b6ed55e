//! What a table says of itself in its log: protocol, schema, properties, and who wrote an entry.

use serde_json::json;

use super::{
    actions::{self, Action, CommitInfo, Format, MetaData, Protocol, READER_VERSION, StringMap, WRITER_VERSION},
    commit::CatalogError,
    schema::{PARTITION_COLUMN, SchemaError},
    state::State,
    table::{TOMBSTONE_KEEP_MS, TableOptions},
};
use crate::model::{Table, Timestamp};

pub(super) fn schema_error(options: &TableOptions, source: SchemaError) -> CatalogError {
    CatalogError::Schema { table: options.prefix.clone(), source }
}

pub(super) fn protocol() -> Protocol {
    Protocol { min_reader_version: READER_VERSION, min_writer_version: WRITER_VERSION }
}

pub(super) fn check_protocol(options: &TableOptions, state: &State) -> Result<(), CatalogError> {
    match &state.protocol {
        Some(p) if p.min_reader_version > READER_VERSION || p.min_writer_version > WRITER_VERSION => {
            Err(CatalogError::Protocol {
                table: options.prefix.clone(),
                reader: p.min_reader_version,
                writer: p.min_writer_version,
            })
        }
        _ => Ok(()),
    }
}

pub(super) fn metadata(options: &TableOptions, id: String, schema_string: String, now: Timestamp) -> MetaData {
    MetaData {
        id,
        name: Some(options.table.name().to_owned()),
        description: None,
        format: Format { provider: "parquet".into(), options: StringMap::new() },
        schema_string,
        partition_columns: vec![PARTITION_COLUMN.to_owned()],
        configuration: properties(options.table),
        created_time: Some(now.millis()),
    }
}

/// Table properties, as every table has them.
///
/// Which columns have statistics must be said: Python's `deltalake` 1.6 takes a statistic that is not there for a bound that
/// nothing meets, and would answer every filter on another column with no row at all.
pub(super) fn properties(table: Table) -> StringMap {
    let keep = format!("interval {} seconds", TOMBSTONE_KEEP_MS / 1000);
    let (name, columns) = match table {
        Table::Logs | Table::Spans => ("delta.dataSkippingStatsColumns", "ts"),
        // Their columns have one of two bounds: none that such a reader may use.
        Table::MetricSeries => ("delta.dataSkippingNumIndexedCols", "0"),
        _ => ("delta.dataSkippingStatsColumns", "ts_ms"),
    };
    StringMap::from([
        ("delta.deletedFileRetentionDuration".to_owned(), Some(keep)),
        (name.to_owned(), Some(columns.to_owned())),
    ])
}

pub(super) fn info(operation: &str, now: Timestamp, blind: bool, id: String) -> Action {
    Action::CommitInfo(CommitInfo {
        timestamp: now.millis(),
        operation: operation.to_owned(),
        operation_parameters: Some(json!({})),
        is_blind_append: Some(blind),
        engine_info: Some(concat!("sightline/", env!("CARGO_PKG_VERSION")).to_owned()),
        txn_id: Some(id),
    })
}

pub(super) fn holds_id(entry: &[u8], id: &str) -> bool {
    actions::parse_entry(entry).is_ok_and(|all| {
        all.iter().any(|a| matches!(a, Action::CommitInfo(info) if info.txn_id.as_deref() == Some(id)))
    })
}
