//! Elasticsearch bulk: one document a log record, each with an id of its own, so that a request that is sent again after a
//! lost answer makes no document twice (409 is done).
//!
//!   {"@timestamp":"2026-01-02T03:04:05.000000006Z","message":"x","labels":{"app":"api"},"log":{"level":"error"},
//!    "service":{"name":"api"},"trace":{"id":"<hex>"},"span":{"id":"<hex>"},"attributes":{},"resource":{}}

use chrono::{DateTime, SecondsFormat};
use serde::Deserialize;
use storage::model::json::{self, write_string};

use super::remote::{
    Answer, BodyCompression, Encoded, Outgoing, Protocol, Rows,
    config::{Compression, remote_config},
    http_client::HttpClient,
    retry::Rules,
};
use crate::{
    Data,
    codec::{
        columns::{Blobs, EncodeError, Text, Times},
        loki::write_json,
    },
    component::Signals,
};

remote_config! {
    /// `type: elasticsearch`.
    Config {
        /// Index or data stream.
        index: String = "logs-generic-default".to_owned(),
    }
}

impl Config {
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut out = self.remote().problems(&["http", "https"]);
        let index = self.index();
        let wrong = |c: char| c.is_uppercase() || c.is_whitespace() || "\\/*?\"<>|,#:".contains(c);
        if index.is_empty() || index.contains(wrong) || index.starts_with(['-', '_', '+']) {
            out.push(("index", format!("`{index}` is no name of an index")));
        }
        if self.compression == Some(Compression::Snappy) || self.compression == Some(Compression::Zstd) {
            out.push(("compression", "Elasticsearch takes gzip and none".into()));
        }
        out
    }

    pub fn protocol(&self, name: &str) -> Result<Elasticsearch, String> {
        let base = self.url.trim_end_matches('/');
        let url = if base.ends_with("/_bulk") { base.to_owned() } else { format!("{base}/_bulk") };
        let remote = self.remote();
        let compression = remote.compression;
        HttpClient::new(&remote, name).map(|client| Elasticsearch { client, url, compression, index: self.index() })
    }
}

pub struct Elasticsearch {
    client: HttpClient,
    url: String,
    compression: Compression,
    index: String,
}

#[async_trait::async_trait]
impl Protocol for Elasticsearch {
    fn signals(&self) -> Signals {
        Signals::LOGS
    }

    fn encode(&self, rows: &Rows<'_>) -> Result<Encoded, EncodeError> {
        encode(rows, &self.index)
    }

    fn compression(&self) -> BodyCompression {
        BodyCompression::Chosen(self.compression)
    }

    async fn send(&self, request: &Outgoing) -> Answer {
        match self.client.post(&self.url, "application/x-ndjson", None, request).await {
            Err(answer) => answer,
            Ok(reply) => reply.refusal(Rules::Common).unwrap_or_else(|| item_answer(&reply.body, request.items)),
        }
    }
}

/// The action and the document of each row.
fn encode(rows: &Rows<'_>, index: &str) -> Result<Encoded, EncodeError> {
    let Data::Logs(batch) = rows.data else {
        return Ok(Encoded { unsupported: rows.data.rows() as u64, ..Encoded::default() });
    };
    let (ts, body, body_type) = (Times::of(batch, "ts")?, Text::of(batch, "body")?, Text::of(batch, "body_type")?);
    let (labels, service) = (Text::of(batch, "stream_labels")?, Text::of(batch, "service_name")?);
    let severity = Text::of(batch, "severity_text")?;
    let (trace, span) = (Blobs::of(batch, "trace_id")?, Blobs::of(batch, "span_id")?);
    let (attrs, resource) = (Text::of(batch, "attrs")?, Text::of(batch, "resource_attrs")?);
    let mut out = String::new();
    let mut ends = Vec::with_capacity(batch.num_rows());
    for row in 0..batch.num_rows() {
        let number = rows.numbers.get(row).copied().unwrap_or(row as u32);
        out.push_str("{\"create\":{\"_index\":");
        write_string(&mut out, index);
        out.push_str(",\"_id\":\"");
        out.push_str(&hex::encode(rows.batch));
        out.push_str(&format!("-{number}\"}}}}\n{{\"@timestamp\":\""));
        let at = DateTime::from_timestamp_nanos(ts.at(row).unwrap_or(0));
        out.push_str(&at.to_rfc3339_opts(SecondsFormat::Nanos, true));
        out.push_str("\",\"message\":");
        let text = body.at(row).unwrap_or_default();
        match (body_type.at(row), json::parse(text)) {
            // A body that is no text: its JSON, as text, so that every document has the same mapping.
            (Some("json"), Ok(value)) => {
                let mut plain = String::new();
                write_json(&mut plain, &value);
                write_string(&mut out, &plain);
            }
            _ => write_string(&mut out, text),
        }
        let texts = [("log", "level", severity.at(row)), ("service", "name", service.at(row))];
        for (object, field, text) in texts {
            if let Some(text) = text.filter(|t| !t.is_empty()) {
                out.push_str(&format!(",\"{object}\":{{\"{field}\":"));
                write_string(&mut out, text);
                out.push('}');
            }
        }
        for (object, id) in [("trace", trace.at(row)), ("span", span.at(row))] {
            if let Some(id) = id {
                out.push_str(&format!(",\"{object}\":{{\"id\":\"{}\"}}", hex::encode(id)));
            }
        }
        let maps = [("labels", labels.at(row)), ("attributes", attrs.at(row)), ("resource", resource.at(row))];
        for (name, text) in maps {
            if let Some(text) = text.filter(|t| *t != "{}") {
                let value = json::parse(text).map_err(|e| EncodeError::column(name, e))?;
                out.push_str(&format!(",\"{name}\":"));
                write_json(&mut out, &value);
            }
        }
        out.push_str("}\n");
        ends.push(out.len());
    }
    Ok(Encoded { body: out.into_bytes(), unsupported: 0, ends })
}

#[derive(Deserialize)]
struct Bulk {
    errors: bool,
    #[serde(default)]
    items: Vec<std::collections::HashMap<String, Item>>,
}

#[derive(Deserialize)]
struct Item {
    status: u16,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

/// The fates of the items of a request that was taken as a whole.
fn item_answer(body: &[u8], items: usize) -> Answer {
    let bulk: Bulk = match serde_json::from_slice(body) {
        Ok(bulk) => bulk,
        // Not known what became of the documents; their ids make it safe to ask again.
        Err(e) => return Answer::Again { after: None, reason: format!("the answer is no bulk response: {e}") },
    };
    if !bulk.errors {
        return Answer::Taken { rejected: 0, message: None };
    }
    if bulk.items.len() != items {
        let reason = format!("the answer has {} items for {items} documents", bulk.items.len());
        return Answer::Again { after: None, reason };
    }
    let (mut refused, mut again, mut reason) = (Vec::new(), Vec::new(), String::new());
    for (n, item) in bulk.items.iter().enumerate() {
        let Some(item) = item.values().next() else { continue };
        let why = || {
            let text = item.error.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("status {}: {text}", item.status)
        };
        match item.status {
            // The document is there already: an earlier attempt made it.
            200..=299 | 409 => {}
            429 | 500..=599 => {
                again.push(n as u32);
                reason = why();
            }
            _ => refused.push((n as u32, why())),
        }
    }
    Answer::Items { refused, again, reason }
}

#[cfg(test)]
mod tests {
    use storage::model::{LogBatchBuilder, LogRow, TenantId};

    use super::*;

    #[test]
    fn documents_have_ids_that_stay() {
        let mut b = LogBatchBuilder::new();
        for body in ["a", "a"] {
            b.push(&LogRow {
                ts: 6,
                stream_labels: r#"{"app":"x"}"#,
                body,
                attrs: Some(r#"{"d":{"$double":"NaN"},"n":{"k":1}}"#),
                trace_id: Some(&[1; 16]),
                severity_text: Some("error"),
                ..LogRow::default()
            });
        }
        let data = Data::Logs(b.finish());
        let tenant = TenantId::default();
        let rows = Rows { data: &data, tenant: &tenant, batch: [7; 16], numbers: &[4, 9] };
        let encoded = encode(&rows, "logs").unwrap();
        let lines: Vec<serde_json::Value> = String::from_utf8(encoded.body.clone())
            .unwrap()
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(lines[0]["create"]["_id"], format!("{}-4", "07".repeat(16)));
        assert_eq!(lines[2]["create"]["_id"], format!("{}-9", "07".repeat(16)));
        assert_eq!(lines[1]["labels"]["app"], "x");
        assert_eq!(lines[1]["attributes"]["d"], "NaN");
        assert_eq!(lines[1]["@timestamp"], "1970-01-01T00:00:00.000000006Z");
        assert_eq!(encoded.ends.len(), 2);
    }

    #[test]
    fn statuses_of_items_decide_each_for_itself() {
        let body = br#"{"took":3,"errors":true,"items":[{"create":{"status":201}},{"create":{"status":409}},
            {"create":{"status":429}},{"create":{"status":503}},
            {"create":{"status":400,"error":{"type":"mapper_parsing_exception"}}}]}"#;
        let Answer::Items { refused, again, .. } = item_answer(body, 5) else { panic!() };
        assert_eq!(again, [2, 3]);
        assert!(refused.len() == 1 && refused[0].0 == 4 && refused[0].1.contains("mapper_parsing"), "{refused:?}");
        assert!(matches!(item_answer(body, 4), Answer::Again { .. }));
        assert!(matches!(item_answer(b"<html>", 4), Answer::Again { .. }));
        assert_eq!(item_answer(br#"{"errors":false,"items":[]}"#, 1), Answer::Taken { rejected: 0, message: None });
    }
}
