"""``python -m loadtest.redis_memory``: what a remembered answer takes of a Redis. It needs redis-server."""

import secrets
from itertools import pairwise
from typing import Final

import redis

from app.cache.entry import EntryFormat
from app.domain.sentiment import Sentiment
from app.inference.bundle import open_bundle
from app.settings import Settings
from loadtest.outage import running_redis

_ENTRIES: Final = (0, 20_000, 65_536, 131_072, 200_000, 300_000, 500_000, 1_000_000)
_TOGETHER: Final = 1_000
_TTL_MS: Final = 86_400_000
_PREFIX: Final = b"sentiment:01234567:"


def main() -> None:
    """Write ever more answers as the service does, and print how the memory grows with them."""
    heads = open_bundle(Settings().model.path).manifest.heads
    entries = EntryFormat(heads)
    answer = Sentiment(dict.fromkeys(heads.labels, 0.0), truncated=False, emotions=dict.fromkeys(heads.emotions, 0.0))
    with running_redis() as (_, url), redis.Redis.from_url(url) as client:
        empty = int(client.info("memory")["used_memory"])
        print(f"Redis {client.info('server')['redis_version']}\n{'entries':>9}  bytes of used_memory for each")
        for have, want in pairwise(_ENTRIES):
            for start in range(have, want, _TOGETHER):
                pipeline = client.pipeline(transaction=False)
                for number in range(start, min(start + _TOGETHER, want)):
                    key = secrets.token_bytes(16)
                    pipeline.set(_PREFIX + key, entries.encode(key, answer), px=_TTL_MS + number)
                pipeline.execute()
            print(f"{want:>9}  {(client.info('memory')['used_memory'] - empty) / want:.0f}", flush=True)


if __name__ == "__main__":
    main()
