"""``make soak``: whether the service's memory grows with what it has answered."""

from itertools import count
from typing import Annotated, Final

import psutil
import typer

from loadtest.corpus import make_texts
from loadtest.load import Request, closed_loop
from loadtest.service import serving

_CONNECTIONS: Final = 64
_TEXTS: Final = 4_000  # all new in each stage
_STAGE_S: Final = 10


def main(requests: Annotated[int, typer.Option(help="How many single texts to send.")] = 200_000) -> None:
    """Send texts of random lengths, none twice, and print what the service holds of the memory meanwhile."""
    with serving() as (port, processes):
        print(f"{'requests':>10}  {'MiB':>6}  ratio\n{0:>10}  {_resident_mib(processes()):>6.0f}")
        answered = 0
        warm_mib = None
        for stage in count():
            if answered >= requests:
                break
            bodies = [Request("/v1/sentiment", {"text": text}) for text in make_texts(_TEXTS, seed=stage)]
            load = closed_loop(port, bodies, connections=_CONNECTIONS, seconds=_STAGE_S)
            if load.errors:
                raise SystemExit(f"{load.errors} requests failed")
            answered += round(load.per_s * _STAGE_S)
            held_mib = _resident_mib(processes())
            warm_mib = warm_mib or held_mib
            print(f"{answered:>10}  {held_mib:>6.0f}  {held_mib / warm_mib:.3f}", flush=True)


def _resident_mib(processes: list[psutil.Process]) -> float:
    return sum(process.memory_info().rss for process in processes) / 2**20


if __name__ == "__main__":
    typer.run(main)
