"""Chaos with real processes: see `docs/reliability.md`. Run it by `scripts/chaos`, which sets it up.

Exit code 0: nothing was lost, doubled, reordered or forked, and everything came to rest. 1: the checker found
something, or the run itself failed; its history is kept. 130: interrupted.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from coordjournal.testing.histories import check, read_events
from tests.chaos import faults
from tests.chaos.run import Chaos, Result, Settings

_SHOWN = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long faults befall it (1)")
    parser.add_argument("--seed", type=int, help="what is random; made up if not given")
    parser.add_argument("--cluster", type=int, choices=(1, 3, 5), default=1, help="members of etcd (1)")
    parser.add_argument("--workers", type=int, default=4, help="processes at a time (4)")
    parser.add_argument("--callers", type=int, default=2, help="callers in each (2)")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two calls of a caller (0.02)")
    parser.add_argument("--only", action="append", default=[], choices=[kind.__name__ for kind in faults.KINDS])
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes, as JSON")
    parser.add_argument("--directory", type=Path, help="where to work, made if need be; a temporary one if not given")
    parser.add_argument("--keep", action="store_true", help="keep history and repository though all went well")
    parser.add_argument("--check", type=Path, metavar="DIRECTORY", help="only check a history that was kept")
    options = parser.parse_args()
    if options.check is not None:
        return check_again(options.check)
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    settings = Settings(
        seed=seed,
        seconds=60 * options.minutes,
        members=options.cluster,
        workers=options.workers,
        callers=options.callers,
        pause_seconds=options.pause,
        kinds=tuple(options.only),
    )
    if options.directory is not None:
        options.directory.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-", dir=options.directory))
    say(f"seed {seed}, {options.cluster} member(s) of etcd, {options.minutes:g} min, in {directory}")
    try:
        result = Chaos(settings, directory, say).run()
    except KeyboardInterrupt:
        say(f"interrupted; what there is of the history is in {directory}")
        return 130
    if options.keep or not result.good:
        result.history = str(directory)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
    tell(result)
    return 0 if result.good else 1


def check_again(directory: Path) -> int:
    """Check a history that was kept."""
    found = check(read_events(*directory.rglob("*.jsonl")))
    for finding in found:
        print(finding)
    return 1 if found else 0


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def tell(result: Result) -> None:
    """Print a result."""
    print(
        f"seed {result.seed}, {result.members} member(s) of etcd, {result.seconds:g} s, {result.revisions:,} revisions"
    )
    for title, counts in (("operations", result.operations), ("faults", result.faults), ("log", result.log)):
        print(f"{title}:")
        for name, count in counts.items():
            print(f"  {count:>8,} {name}")
    if result.healed_seconds:
        slowest = max(result.healed_seconds)
        print(f"after {len(result.healed_seconds)} calms every space took appends again within {slowest:g} s")
    for problem in result.problems:
        print(f"the run itself: {problem}")
    for finding in result.findings[:_SHOWN]:
        print(finding)
    if len(result.findings) > _SHOWN:
        print(f"… and {len(result.findings) - _SHOWN} more")
    if result.good:
        print("nothing was lost, doubled, reordered or forked")
    if result.history:
        print(f"kept: {result.history}")


if __name__ == "__main__":
    sys.exit(main())
