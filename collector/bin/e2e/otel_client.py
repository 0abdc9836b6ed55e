"""Sends logs, metrics and traces with the OpenTelemetry SDK, and prints as JSON what must be found.

usage: otel_client.py grpc|http ENDPOINT SERVICE
"""

import json
import sys

protocol, endpoint, service = sys.argv[1:]

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

if protocol == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from grpc import Compression

    # One signal each way: plain and compressed.
    logs_out = OTLPLogExporter(endpoint=endpoint, insecure=True, compression=Compression.Gzip)
    metrics_out = OTLPMetricExporter(endpoint=endpoint, insecure=True)
    spans_out = OTLPSpanExporter(endpoint=endpoint, insecure=True, compression=Compression.Gzip)
else:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    logs_out = OTLPLogExporter(endpoint=endpoint + "/v1/logs", compression=Compression.Gzip)
    metrics_out = OTLPMetricExporter(endpoint=endpoint + "/v1/metrics")
    spans_out = OTLPSpanExporter(endpoint=endpoint + "/v1/traces", compression=Compression.Deflate)

LOGS, TRACES, CHILDREN, COUNTS = 1500, 40, 4, 250

resource = Resource.create(
    {"service.name": service, "service.version": "1.4.2", "service.instance.id": "one", "team.name": "käse"}
)

tracers = TracerProvider(resource=resource)
tracers.add_span_processor(BatchSpanProcessor(spans_out, max_export_batch_size=64, max_queue_size=100_000))
tracer = tracers.get_tracer("shop.tracer", "0.9")

loggers = LoggerProvider(resource=resource)
loggers.add_log_record_processor(BatchLogRecordProcessor(logs_out, max_export_batch_size=200, max_queue_size=100_000))
logger = loggers.get_logger("shop.logger", "0.8")

traces, before = {}, None
for n in range(TRACES):
    links = [Link(before, {"why": "retry"})] if before else []
    with tracer.start_as_current_span(
        "GET /cart", kind=SpanKind.SERVER, attributes={"n": n, "ratio": n / 8, "ok": True, "tags": ["a", "b"]}, links=links
    ) as root:
        context = root.get_span_context()
        before = context
        spans = {f"{context.span_id:016x}": {"name": "GET /cart", "parent": None, "kind": "server", "n": n, "links": len(links)}}
        for c in range(CHILDREN):
            with tracer.start_as_current_span(f"query {c}", kind=SpanKind.CLIENT) as child:
                child.add_event("row", {"count": c})
                if c == 3:
                    child.set_status(Status(StatusCode.ERROR, "no such table"))
                spans[f"{child.get_span_context().span_id:016x}"] = {
                    "name": f"query {c}", "parent": f"{context.span_id:016x}", "kind": "client", "events": 1, "failed": c == 3,
                }
        if n == 0:
            logger.emit(LogRecord(
                timestamp=root.start_time, severity_number=SeverityNumber.FATAL, severity_text="FATAL",
                body="inside a trace", attributes={"seq": -1},
            ))
            traced = f"{context.trace_id:032x}"
        traces[f"{context.trace_id:032x}"] = spans

levels = [(SeverityNumber.INFO, "INFO"), (SeverityNumber.WARN, "WARN"), (SeverityNumber.ERROR, "ERROR")]
for n in range(LOGS):
    number, text = levels[n % 3]
    logger.emit(LogRecord(
        severity_number=number, severity_text=text, body=f"order {n} placed – ünïcode",
        attributes={"seq": n, "price": n / 4, "vip": n % 2 == 0, "user.name": f"user-{n % 7}"},
    ))

reader = PeriodicExportingMetricReader(metrics_out, export_interval_millis=3_600_000)
views = [View(instrument_name="shop.size", aggregation=ExponentialBucketHistogramAggregation(max_size=160))]
meters = MeterProvider(resource=resource, metric_readers=[reader], views=views)
meter = meters.get_meter("shop.meter", "0.7")
orders = meter.create_counter("shop.orders", unit="{order}", description="Orders placed")
carts = meter.create_up_down_counter("shop.carts")
load = meter.create_gauge("shop.load", unit="1")
took = meter.create_histogram("shop.took", unit="ms", explicit_bucket_boundaries_advisory=[10, 100, 1000])
size = meter.create_histogram("shop.size", unit="By")
for n in range(COUNTS):
    orders.add(2, {"region": "eu" if n % 5 else "us"})
    carts.add(1 if n % 3 else -1)
    took.record(n * 5)
    size.record(2.0 ** (n % 10))
load.set(0.375)

# Each gives False, or raises, when something was not delivered.
delivered = [tracers.force_flush(), loggers.force_flush(), meters.force_flush()]
tracers.shutdown(), loggers.shutdown(), meters.shutdown()

job = f'job="{service}"'
print(json.dumps({
    "delivered": delivered,
    "logs": LOGS,
    "traced": traced,
    "traces": traces,
    "samples": {
        f'shop_orders_total{{{job},region="eu"}}': 2.0 * (COUNTS - COUNTS // 5),
        f'shop_orders_total{{{job},region="us"}}': 2.0 * (COUNTS // 5),
        f"shop_carts{{{job}}}": float(sum(1 if n % 3 else -1 for n in range(COUNTS))),
        f"shop_load_ratio{{{job}}}": 0.375,
        f"shop_took_milliseconds_count{{{job}}}": float(COUNTS),
        f"shop_took_milliseconds_sum{{{job}}}": float(sum(n * 5 for n in range(COUNTS))),
        f'shop_took_milliseconds_bucket{{{job},le="10"}}': float(sum(n * 5 <= 10 for n in range(COUNTS))),
        f'shop_took_milliseconds_bucket{{{job},le="100"}}': float(sum(n * 5 <= 100 for n in range(COUNTS))),
        f'shop_took_milliseconds_bucket{{{job},le="1000"}}': float(sum(n * 5 <= 1000 for n in range(COUNTS))),
        f'shop_took_milliseconds_bucket{{{job},le="+Inf"}}': float(COUNTS),
        f"histogram_count(shop_size_bytes{{{job}}})": float(COUNTS),
        f"histogram_sum(shop_size_bytes{{{job}}})": sum(2.0 ** (n % 10) for n in range(COUNTS)),
    },
}))
