// Sends logs, metrics and traces with the OpenTelemetry SDK, and prints as JSON what must be found.
// node otel_client.js grpc|http ENDPOINT SERVICE
const { context, diag, DiagLogLevel, SpanKind, SpanStatusCode, trace } = require('@opentelemetry/api');
const { resourceFromAttributes } = require('@opentelemetry/resources');
const { BatchLogRecordProcessor, LoggerProvider } = require('@opentelemetry/sdk-logs');
const { AggregationType, MeterProvider, PeriodicExportingMetricReader } = require('@opentelemetry/sdk-metrics');
const { BasicTracerProvider, BatchSpanProcessor } = require('@opentelemetry/sdk-trace-base');

const [protocol, endpoint, service] = process.argv.slice(2);
// The exporters tell of each request they had to give up, on standard error.
const complain = (...words) => console.error(...words);
diag.setLogger({ error: complain, warn: complain, info() {}, debug() {}, verbose() {} }, DiagLogLevel.WARN);

const kind = protocol === 'grpc' ? 'grpc' : 'proto';
const { OTLPLogExporter } = require(`@opentelemetry/exporter-logs-otlp-${kind}`);
const { OTLPMetricExporter } = require(`@opentelemetry/exporter-metrics-otlp-${kind}`);
const { OTLPTraceExporter } = require(`@opentelemetry/exporter-trace-otlp-${kind}`);
const url = (path) => (kind === 'grpc' ? `http://${endpoint}` : `${endpoint}/v1/${path}`);
// Plain and compressed.
const logsOut = new OTLPLogExporter({ url: url('logs'), compression: 'gzip' });
const metricsOut = new OTLPMetricExporter({ url: url('metrics') });
const spansOut = new OTLPTraceExporter({ url: url('traces'), compression: 'gzip' });

const [LOGS, TRACES, CHILDREN, COUNTS] = [600, 20, 4, 250];
const resource = resourceFromAttributes({
  'service.name': service, 'service.version': '1.4.2', 'service.instance.id': 'one', 'team.name': 'käse',
});
const queue = { maxExportBatchSize: 64, maxQueueSize: 100000 };
const tracers = new BasicTracerProvider({ resource, spanProcessors: [new BatchSpanProcessor(spansOut, queue)] });
const tracer = tracers.getTracer('shop.tracer', '0.9');
const loggers = new LoggerProvider({ resource, processors: [new BatchLogRecordProcessor({ exporter: logsOut, ...queue })] });
const logger = loggers.getLogger('shop.logger', '0.8');
const reader = new PeriodicExportingMetricReader({ exporter: metricsOut, exportIntervalMillis: 3600000 });
const views = [{ instrumentName: 'shop.size', aggregation: { type: AggregationType.EXPONENTIAL_HISTOGRAM, options: { maxSize: 160 } } }];
const meters = new MeterProvider({ resource, readers: [reader], views });
const meter = meters.getMeter('shop.meter', '0.7');

const traces = {};
let traced = '';
let before = [];
for (let i = 0; i < TRACES; i += 1) {
  // Odd: a whole number is an integer to JavaScript, and the eighth of an odd one is not.
  const n = 2 * i + 1;
  const root = tracer.startSpan('GET /cart', {
    kind: SpanKind.SERVER, attributes: { n, ratio: n / 8, ok: true, tags: ['a', 'b'] }, links: before,
  });
  const { traceId, spanId } = root.spanContext();
  const inside = trace.setSpan(context.active(), root);
  const spans = { [spanId]: { name: 'GET /cart', parent: null, kind: 'server', n, links: before.length } };
  before = [{ context: root.spanContext(), attributes: { why: 'retry' } }];
  for (let c = 0; c < CHILDREN; c += 1) {
    const child = tracer.startSpan(`query ${c}`, { kind: SpanKind.CLIENT }, inside);
    child.addEvent('row', { count: c });
    if (c === 3) child.setStatus({ code: SpanStatusCode.ERROR, message: 'no such table' });
    spans[child.spanContext().spanId] = { name: `query ${c}`, parent: spanId, kind: 'client', events: 1, failed: c === 3 };
    child.end();
  }
  if (i === 0) {
    logger.emit({ severityNumber: 21, severityText: 'FATAL', body: 'inside a trace', attributes: { seq: -1 }, context: inside });
    traced = traceId;
  }
  root.end();
  traces[traceId] = spans;
}

const levels = [[9, 'INFO'], [13, 'WARN'], [17, 'ERROR']];
for (let n = 0; n < LOGS; n += 1) {
  const [severityNumber, severityText] = levels[n % 3];
  logger.emit({
    severityNumber, severityText, body: `order ${n} placed – ünïcode`,
    attributes: { seq: n, price: n / 4, vip: n % 2 === 0, 'user.name': `user-${n % 7}` },
  });
}

const orders = meter.createCounter('shop.orders', { unit: '{order}', description: 'Orders placed' });
const carts = meter.createUpDownCounter('shop.carts');
const load = meter.createGauge('shop.load', { unit: '1' });
const took = meter.createHistogram('shop.took', { unit: 'ms', advice: { explicitBucketBoundaries: [10, 100, 1000] } });
const size = meter.createHistogram('shop.size', { unit: 'By' });
const numbers = [...Array(COUNTS).keys()];
for (const n of numbers) {
  orders.add(2, { region: n % 5 ? 'eu' : 'us' });
  carts.add(n % 3 ? 1 : -1);
  took.record(n * 5);
  size.record(2 ** (n % 10));
}
load.record(0.375);

const sum = (f) => numbers.reduce((total, n) => total + f(n), 0);
const job = `job="${service}"`;
const told = {
  logs: LOGS, traced, traces,
  samples: {
    [`shop_orders_total{${job},region="eu"}`]: 2 * (COUNTS - COUNTS / 5),
    [`shop_orders_total{${job},region="us"}`]: (2 * COUNTS) / 5,
    [`shop_carts{${job}}`]: sum((n) => (n % 3 ? 1 : -1)),
    [`shop_load_ratio{${job}}`]: 0.375,
    [`shop_took_milliseconds_count{${job}}`]: COUNTS,
    [`shop_took_milliseconds_sum{${job}}`]: sum((n) => n * 5),
    [`shop_took_milliseconds_bucket{${job},le="10"}`]: sum((n) => n * 5 <= 10),
    [`shop_took_milliseconds_bucket{${job},le="1000"}`]: sum((n) => n * 5 <= 1000),
    [`shop_took_milliseconds_bucket{${job},le="+Inf"}`]: COUNTS,
    [`histogram_count(shop_size_bytes{${job}})`]: COUNTS,
    [`histogram_sum(shop_size_bytes{${job}})`]: sum((n) => 2 ** (n % 10)),
  },
};
// Each rejects when something was not delivered.
const all = [tracers, loggers, meters];
Promise.all(all.map((p) => p.forceFlush().then(() => true)))
  .then(async (delivered) => {
    await Promise.all(all.map((p) => p.shutdown()));
    console.log(JSON.stringify({ delivered, ...told }));
  })
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
