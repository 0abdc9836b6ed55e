//! From the SDK's batches to OTLP requests, handed over without waiting.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use opentelemetry::{InstrumentationScope, Value, logs::AnyValue};
use opentelemetry_proto::{
    tonic::collector::{
        logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest,
        trace::v1::ExportTraceServiceRequest,
    },
    transform::{
        common::tonic::ResourceAttributesWithSchema, logs::tonic::group_logs_by_resource_and_scope,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    logs::{LogBatch, LogExporter, SdkLogRecord},
    metrics::{Temporality, data::ResourceMetrics, exporter::PushMetricExporter},
    trace::{SpanData, SpanExporter},
};
use storage::model::TenantId;
use tokio::sync::mpsc;

use super::{Flow, PARCEL_BYTES_MAX, Parcel, Signal};

/// The attribute by which the store's spans and log records name the tenant they are about.
const ABOUT: &str = "tenant";

/// The way to the store, with a bound on what is under way.
#[derive(Clone)]
pub struct Door {
    sender: mpsc::Sender<Parcel>,
    flow: Arc<Flow>,
    own: TenantId,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Door")
    }
}

impl Door {
    pub fn new(sender: mpsc::Sender<Parcel>, flow: Arc<Flow>, own: TenantId) -> Self {
        Door { sender, flow, own }
    }

    fn hand(&self, signal: Signal, records: usize, request: &impl prost::Message) -> OTelSdkResult {
        if records == 0 {
            return Ok(());
        }
        let body = request.encode_to_vec();
        let (records, bytes) = (records as u64, body.len());
        let queued = self.flow.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let parcel = Parcel { signal, body, records };
        if queued <= PARCEL_BYTES_MAX && self.sender.try_send(parcel).is_ok() {
            return Ok(());
        }
        self.flow.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.flow.dropped[signal as usize].fetch_add(records, Ordering::Relaxed);
        Err(OTelSdkError::InternalFailure("the store does not take our own telemetry fast enough".to_owned()))
    }
}

#[derive(Debug)]
pub struct Spans {
    door: Door,
    resource: ResourceAttributesWithSchema,
}

impl Spans {
    pub fn new(door: Door) -> Self {
        Spans { door, resource: ResourceAttributesWithSchema::default() }
    }
}

impl SpanExporter for Spans {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        let own = self.door.own.as_str();
        let about_us = |v: &Value| matches!(v, Value::String(s) if s.as_str() == own);
        batch.retain(|s| !s.attributes.iter().any(|a| a.key.as_str() == ABOUT && about_us(&a.value)));
        let records = batch.len();
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        self.door.hand(Signal::Traces, records, &ExportTraceServiceRequest { resource_spans })
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

#[derive(Debug)]
pub struct Logs {
    door: Door,
    resource: ResourceAttributesWithSchema,
}

impl Logs {
    pub fn new(door: Door) -> Self {
        Logs { door, resource: ResourceAttributesWithSchema::default() }
    }
}

impl LogExporter for Logs {
    async fn export(&self, batch: LogBatch<'_>) -> OTelSdkResult {
        let own = self.door.own.as_str();
        let about_us = |v: &AnyValue| matches!(v, AnyValue::String(s) if s.as_str() == own);
        let kept: Vec<(&SdkLogRecord, &InstrumentationScope)> = batch
            .iter()
            .filter(|(r, _)| !r.attributes_iter().any(|(k, v)| k.as_str() == ABOUT && about_us(v)))
            .collect();
        let resource_logs = group_logs_by_resource_and_scope(&LogBatch::new(&kept), &self.resource);
        self.door.hand(Signal::Logs, kept.len(), &ExportLogsServiceRequest { resource_logs })
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

pub struct Metrics {
    door: Door,
}

impl Metrics {
    pub fn new(door: Door) -> Self {
        Metrics { door }
    }
}

impl PushMetricExporter for Metrics {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        let records = metrics.scope_metrics().map(|s| s.metrics().count()).sum();
        self.door.hand(Signal::Metrics, records, &ExportMetricsServiceRequest::from(metrics))
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}
