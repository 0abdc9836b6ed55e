//! The body of an Elasticsearch `_bulk` request: action lines and documents to log records.
//!
//! `index` and `create` store their document; `update` is refused, because records never change, and `delete` finds
//! nothing. The index becomes the stream label `index` and, where the document names no service, the service.

use std::{borrow::Cow, sync::Arc};

use serde_json::Value;

use super::{
    Decoded, Limits, Malformed, Reason,
    ndjson::{Documents, Params},
    outcome::{DETAILS_MAX, clip},
};

/// Actions of one request; senders split what is more.
pub const ACTIONS_MAX: usize = 200_000;

/// Bytes of an action line: names of an index and a document, and a few options.
const ACTION_BYTES_MAX: usize = 16 << 10;
/// Bytes of an index name (Elasticsearch's own limit).
const INDEX_BYTES_MAX: usize = 255;
/// Bytes of a document's id (Elasticsearch's own limit).
const ID_BYTES_MAX: usize = 512;
/// Bytes of the reason that an item is told.
const REASON_BYTES_MAX: usize = 512;

/// What an action asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Index,
    Create,
    Update,
    Delete,
}

impl Action {
    pub const fn name(self) -> &'static str {
        match self {
            Action::Index => "index",
            Action::Create => "create",
            Action::Update => "update",
            Action::Delete => "delete",
        }
    }
}

/// One action and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub action: Action,
    pub index: Arc<str>,
    pub id: Option<String>,
    /// Why it was refused.
    pub refused: Option<Cow<'static, str>>,
}

/// A decoded request, one item an action, in order.
#[derive(Debug)]
pub struct Bulk {
    pub decoded: Decoded,
    pub items: Vec<Item>,
}

/// `index`: of the path, for actions that name none. `now`: nanoseconds since the epoch.
pub fn decode(body: &[u8], index: Option<&str>, limits: &Limits, now: i64) -> Result<Bulk, Malformed> {
    let params = Params::documents();
    let mut documents = Documents::new(&params, limits, now);
    let mut items: Vec<Item> = Vec::new();
    let mut told = 0;
    let mut last: Arc<str> = index.unwrap_or_default().into();
    let mut lines = (1u64..).zip(body.split(|b| *b == b'\n')).filter(|(_, line)| !line.trim_ascii().is_empty());
    while let Some((at, line)) = lines.next() {
        if items.len() == ACTIONS_MAX {
            return Err(Malformed(format!("request has more than {ACTIONS_MAX} actions; send fewer at once")));
        }
        let (action, id) = action(line, index, &mut last)
            .map_err(|why| Malformed(format!("Malformed action/metadata line [{at}]: {why}")))?;
        let mut item = Item { action, index: last.clone(), id, refused: None };
        if action != Action::Delete {
            let Some((at, document)) = lines.next() else {
                return Err(Malformed(format!("action in line [{at}] has no document")));
            };
            let done = match (action, std::str::from_utf8(document)) {
                (Action::Update, _) => {
                    Err((Reason::Malformed, "update is not supported: records never change; use create".to_owned()))
                }
                (_, Err(_)) => Err((Reason::InvalidUtf8, "document is not valid UTF-8".to_owned())),
                (_, Ok(text)) => documents.push(text, &item.index),
            };
            if let Err((reason, message)) = done {
                documents.refuse(reason, at, &message);
                told += 1;
                // The first are told in full.
                item.refused = Some(match told <= DETAILS_MAX {
                    true => clip(message, REASON_BYTES_MAX).into(),
                    false => reason.name().into(),
                });
            }
        }
        items.push(item);
    }
    Ok(Bulk { decoded: documents.finish(), items })
}

/// What a line asks for and the id of its document; `index` becomes that of the line. `path`: the index of the path.
fn action(line: &[u8], path: Option<&str>, index: &mut Arc<str>) -> Result<(Action, Option<String>), String> {
    if line.len() > ACTION_BYTES_MAX {
        return Err(format!("line has {} bytes; at most {ACTION_BYTES_MAX}", line.len()));
    }
    let sent: Value = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    let object = sent.as_object().filter(|o| o.len() == 1).ok_or("expected one action")?;
    let (name, meta) = object.iter().next().ok_or("expected one action")?;
    let action = match name.as_str() {
        "index" => Action::Index,
        "create" => Action::Create,
        "update" => Action::Update,
        "delete" => Action::Delete,
        other => return Err(format!("unknown action [{}]", clip(other.to_owned(), 64))),
    };
    let meta = meta.as_object().ok_or("expected an object of metadata")?;
    let named = meta.get("_index").and_then(Value::as_str).or(path).filter(|i| !i.is_empty());
    let named = named.ok_or("index is missing")?;
    if named.len() > INDEX_BYTES_MAX {
        return Err(format!("index name is longer than {INDEX_BYTES_MAX} bytes"));
    }
    if **index != *named {
        *index = named.into();
    }
    let id = match meta.get("_id") {
        None | Some(Value::Null) => None,
        Some(Value::String(id)) => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        Some(_) => return Err("_id is no string".to_owned()),
    };
    if id.as_ref().is_some_and(|id| id.len() > ID_BYTES_MAX) {
        return Err(format!("_id is longer than {ID_BYTES_MAX} bytes"));
    }
    Ok((action, id))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Batch, sink::stdout::write_batch};

    const NOW: i64 = 1_767_225_600_000_000_000;

    fn printed(bulk: &Bulk) -> Vec<Value> {
        let lines = bulk.decoded.batches.iter().flat_map(|data| {
            let text = write_batch(&Batch::new(Default::default(), data.clone())).unwrap();
            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect::<Vec<Value>>()
        });
        lines.collect()
    }

    #[test]
    fn each_action_has_its_item_and_good_documents_are_kept() {
        let body = concat!(
            "{\"index\":{\"_index\":\"app\",\"_id\":\"7\"}}\n{\"@timestamp\":\"2026-01-01T00:00:00Z\",\"message\":\"one\"}\n\n",
            "{\"create\":{}}\n{\"broken\"\n{\"delete\":{\"_id\":\"7\"}}\n{\"update\":{\"_id\":\"7\"}}\n{\"doc\":{}}\n",
            "{\"create\":{\"_index\":\"b\"}}\r\n{\"a\":1,\"@timestamp\":1767225600000}\r"
        );
        let bulk = decode(body.as_bytes(), Some("logs"), &Limits::default(), NOW).unwrap();
        let told: Vec<_> = bulk.items.iter().map(|i| (i.action.name(), &*i.index, i.refused.is_some())).collect();
        assert_eq!(
            told,
            [
                ("index", "app", false),
                ("create", "logs", true),
                ("delete", "logs", false),
                ("update", "logs", true),
                ("create", "b", false)
            ]
        );
        assert_eq!((bulk.decoded.accepted, bulk.decoded.rejected.total()), (2, 2));
        assert_eq!(bulk.decoded.rejected.details[0].at, 5);
        let bodies: Vec<Value> = printed(&bulk).iter().map(|r| r["body"].clone()).collect();
        assert_eq!(
            bodies,
            ["one", "{\"a\":1,\"@timestamp\":1767225600000}"],
            "a document without a message is its own"
        );
    }

    #[test]
    fn a_document_has_its_time_its_service_and_its_index() {
        let mut body = String::new();
        for document in [
            r#"{"@timestamp":"2026-01-01T00:00:01.5","message":"m","service.name":"shop"}"#,
            r#"{"timestamp":"2026-01-01T00:00:01","message":"m","service":{"name":"cart","version":"1"}}"#,
            r#"{"time":"half past ten","message":"m","level":"warn"}"#,
        ] {
            body.push_str("{\"create\":{}}\n");
            body.push_str(document);
            body.push('\n');
        }
        let bulk = decode(body.as_bytes(), Some("logs-x"), &Limits::default(), NOW).unwrap();
        assert_eq!(bulk.decoded.accepted, 3, "{:?}", bulk.items);
        let rows = printed(&bulk);
        for (row, service) in rows.iter().zip(["shop", "cart", "logs-x"]) {
            let text = row.to_string();
            assert!(
                text.contains(&format!("\"service_name\":\"{service}\"")) && text.contains("\"index\":\"logs-x\""),
                "{text}"
            );
        }
        assert!(rows[1].to_string().contains("\"version\":\"1\"") && rows[2].to_string().contains("half past ten"));
    }

    #[test]
    fn broken_framing_is_told_with_its_line() {
        for (body, what) in [
            ("{\"index\":{}}\n{}\n".to_owned(), "index is missing"),
            ("{\"index\":{\"_index\":\"a\"}}\n".to_owned(), "no document"),
            ("{\"drop\":{}}\n".to_owned(), "unknown action"),
            ("[1]\n".to_owned(), "line [1]"),
            ("\n7\n".to_owned(), "line [2]"),
            ("{\"index\":{\"_index\":\"a\",\"_id\":{}}}\n{}\n".to_owned(), "_id"),
            (format!("{{\"index\":{{\"_index\":\"{}\"}}}}\n{{}}\n", "a".repeat(256)), "index name"),
            (format!("{{\"index\":{{\"x\":\"{}\"}}}}\n{{}}\n", "a".repeat(ACTION_BYTES_MAX)), "at most"),
        ] {
            let e = decode(body.as_bytes(), None, &Limits::default(), NOW).unwrap_err();
            assert!(e.0.contains(what), "{body}: {e}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_lines_never_panic(
            lines in proptest::collection::vec("(\\{\"(index|create|delete)\":\\{\\}\\}|.{0,30})", 0..12),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = decode(lines.join("\n").as_bytes(), Some("i"), &Limits::default(), NOW);
            let _ = decode(&noise, Some("i"), &Limits::default(), NOW);
        }
    }
}
