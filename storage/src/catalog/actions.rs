//! The actions of a log entry as JSON lines. Source: Delta transaction log protocol, "Actions".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Reader and writer versions we write, and the highest we understand.
pub const READER_VERSION: i32 = 1;
pub const WRITER_VERSION: i32 = 2;

pub type StringMap = BTreeMap<String, Option<String>>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Protocol {
    pub min_reader_version: i32,
    pub min_writer_version: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Format {
    pub provider: String,
    #[serde(default)]
    pub options: StringMap,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetaData {
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub format: Format,
    pub schema_string: String,
    pub partition_columns: Vec<String>,
    #[serde(default)]
    pub configuration: StringMap,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_time: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Add {
    /// Relative to the table, URL-encoded; ours need no encoding.
    pub path: String,
    #[serde(default)]
    pub partition_values: StringMap,
    pub size: i64,
    /// Milliseconds since the epoch.
    pub modification_time: i64,
    pub data_change: bool,
    /// JSON in a string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<StringMap>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remove {
    pub path: String,
    /// Milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<i64>,
    pub data_change: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extended_file_metadata: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_values: Option<StringMap>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Txn {
    pub app_id: String,
    pub version: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitInfo {
    #[serde(default)]
    pub timestamp: i64,
    #[serde(default)]
    pub operation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_parameters: Option<serde_json::Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_blind_append: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_info: Option<String>,
    /// Tells our own entry from another writer's after a write whose outcome is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub txn_id: Option<String>,
}

/// One line of an entry.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    Add(Add),
    Remove(Remove),
    Txn(Txn),
    MetaData(MetaData),
    Protocol(Protocol),
    CommitInfo(CommitInfo),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    add: Option<Add>,
    remove: Option<Remove>,
    txn: Option<Txn>,
    meta_data: Option<MetaData>,
    protocol: Option<Protocol>,
    // Other writers put what they like here; ours alone is looked at, and only if it has the shape.
    #[serde(borrow)]
    commit_info: Option<&'a RawValue>,
}

/// The actions of an entry in order; kinds unknown to us are skipped, as the protocol asks.
pub fn parse_entry(bytes: &[u8]) -> Result<Vec<Action>, serde_json::Error> {
    let mut out = Vec::new();
    for line in bytes.split(|b| *b == b'\n') {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line: Line<'_> = serde_json::from_slice(line)?;
        out.extend(line.add.map(Action::Add));
        out.extend(line.remove.map(Action::Remove));
        out.extend(line.txn.map(Action::Txn));
        out.extend(line.meta_data.map(Action::MetaData));
        out.extend(line.protocol.map(Action::Protocol));
        out.extend(line.commit_info.and_then(|raw| serde_json::from_str(raw.get()).ok()).map(Action::CommitInfo));
    }
    Ok(out)
}

/// One JSON object a line.
pub fn write_entry(actions: &[Action]) -> Vec<u8> {
    let mut out = Vec::with_capacity(512 * actions.len());
    for action in actions {
        serde_json::to_writer(&mut out, action).expect("actions have string keys and finite numbers");
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_entries_are_read_and_unknown_actions_skipped() {
        let text = br#"{"commitInfo":{"timestamp":1,"operation":"WRITE","operationParameters":{"mode":"Append"},"x":[1]}}
{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}
{"cdc":{"path":"x"}}

{"add":{"path":"a%20b.parquet","partitionValues":{"day":null},"size":3,"modificationTime":5,"dataChange":true,"stats":null,"deletionVector":null}}
{"remove":{"path":"c","dataChange":false}}"#;
        let actions = parse_entry(text).unwrap();
        assert_eq!(actions.len(), 4);
        assert!(matches!(&actions[2], Action::Add(a) if a.partition_values["day"].is_none()));
    }

    #[test]
    fn an_entry_reads_back_and_a_torn_one_is_an_error() {
        let actions = [
            Action::Txn(Txn { app_id: "wal".into(), version: 7, last_updated: None }),
            Action::Protocol(Protocol { min_reader_version: 1, min_writer_version: 2 }),
        ];
        let bytes = write_entry(&actions);
        assert_eq!(format!("{:?}", parse_entry(&bytes).unwrap()), format!("{actions:?}"));
        assert!(parse_entry(&bytes[..bytes.len() - 4]).is_err());
        assert!(parse_entry(b"\0\0\0\0").is_err());
    }
}
