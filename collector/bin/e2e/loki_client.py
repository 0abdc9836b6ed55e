"""Lines through python-logging-loki, as its users write them: loki_client.py URL APP COUNT"""

import logging
import sys

import logging_loki

url, app, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
handler = logging_loki.LokiHandler(url=url + "/loki/api/v1/push", tags={"app": app}, version="1")
log = logging.getLogger("shop")
log.setLevel(logging.DEBUG)
log.addHandler(handler)
for n in range(count):
    log.log(
        logging.WARNING if n % 2 else logging.INFO,
        'python line %d "quoted" ü\nsecond',
        n,
        extra={"tags": {"part": str(n % 3)}},
    )
