"""Simulate the protocol: `scripts/simulate --schedules 100000 --seed 7`; `--kind lossy` for one kind of world.

A failure prints its seed, a shrunk schedule with its steps, and the command that shows it again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing import Pool

from tests.simulation.judging import simulate
from tests.simulation.kinds import KINDS
from tests.simulation.schedule import Schedule, ScheduleFailed, explore

CHUNK = 50


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    parser.add_argument("--schedules", type=int, default=2_000, metavar="N", help="how many (2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first one's seed (0)")
    parser.add_argument("--kind", choices=[kind.name for kind in KINDS], help="of worlds; all kinds, if not given")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="processes side by side (1)")
    options = parser.parse_args(arguments)
    end = options.seed + options.schedules
    chunks = [(seed, min(seed + CHUNK, end), options.kind) for seed in range(options.seed, end, CHUNK)]
    began, done, failed = time.monotonic(), 0, False
    kinds: Counter[str] = Counter()
    with Pool(options.jobs) as pool:
        for (start, stop, _), (failure, ran) in zip(chunks, pool.imap(run, chunks), strict=True):
            kinds.update(ran)
            done += stop - start
            if failure is not None:
                failed = True
                seed, words = failure
                print(f"\n{words}\nagain: {again(seed, options.kind)}", flush=True)
                break
            seconds = time.monotonic() - began
            print(f"\r{done:,} schedules in {seconds:,.0f} s", end="", flush=True)
    print(f"\n{', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}")
    return 1 if failed else 0


def again(seed: int, kind: str | None) -> str:
    """Return the command that simulates the one schedule again: a seed means another world in another kind."""
    return shlex.join(
        ["scripts/simulate", "--schedules", "1", "--seed", str(seed), *(["--kind", kind] if kind else [])]
    )


def run(chunk: tuple[int, int, str | None]) -> tuple[tuple[int, str] | None, Counter[str]]:
    """Simulate the schedules of some seeds; return which one failed and how, and which kinds of world there were."""
    start, stop, name = chunk
    kind = next((kind for kind in KINDS if kind.name == name), None)
    ran: Counter[str] = Counter()

    def one(schedule: Schedule) -> None:
        ran[simulate(schedule, kind).kind.name] += 1

    try:
        explore(one, range(start, stop))
    except ScheduleFailed as failure:
        return (failure.seed, str(failure)), ran
    return None, ran


if __name__ == "__main__":
    sys.exit(main())
