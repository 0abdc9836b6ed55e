// Lines through winston-loki, as its users write them: node loki_client.js URL APP COUNT json|protobuf
const { createLogger, format } = require('winston');
const LokiTransport = require('winston-loki');

const [url, app, count, form] = process.argv.slice(2);
const transport = new LokiTransport({
  host: url,
  labels: { app },
  json: form === 'json',
  format: format.printf((info) => info.message),
  interval: 1,
  onConnectionError: (error) => {
    console.error(error);
    process.exitCode = 1;
  },
});
const log = createLogger({ level: 'debug', transports: [transport] });
for (let n = 0; n < Number(count); n += 1) {
  log.log({ level: n % 2 ? 'warn' : 'info', message: `node line ${n} "quoted" ü`, labels: { part: String(n % 3) } });
}
transport.flush().then(() => log.close());
