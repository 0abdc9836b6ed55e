"""Documents through the official Elasticsearch client and its bulk helper: elastic_client.py URL INDEX COUNT"""

import datetime
import sys

from elasticsearch import Elasticsearch, helpers

url, index, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = Elasticsearch(url, http_compress=True, max_retries=0)
assert client.ping()
assert client.info()["version"]["number"].startswith("8.")
start = datetime.datetime(2026, 1, 2, 3, 4, 5)


def document(n):
    # The client writes a time without a zone as it is.
    zone = datetime.timezone.utc if n % 2 else None
    time = (start + datetime.timedelta(milliseconds=n)).replace(tzinfo=zone)
    return {"@timestamp": time, "message": f"order {n} ü", "level": "warn", "n": n, "shop": {"id": n % 3}}


actions = [{"_op_type": "create", "_index": index, "_source": document(n)} for n in range(count)]
done, errors = helpers.bulk(client, actions, chunk_size=7)
assert (done, errors) == (count, []), (done, errors)

bad = {"_index": index, "_id": "bad", "_source": {"@timestamp": "soon", "message": "never"}}
good = {"_index": index, "_id": "good", "_source": document(count)}
for _ in range(2):
    done, errors = helpers.bulk(client, [bad, good], raise_on_error=False)
    assert done == 1 and [e["index"]["status"] for e in errors] == [400], (done, errors)
