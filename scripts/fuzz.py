"""Fuzz what takes input from outside, guided by coverage; see `scripts/fuzz`."""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    fuzzer: Any = importlib.import_module("atheris")  # installed on demand
    with fuzzer.instrument_imports(include=["coordjournal"]):
        from tests.unit.test_hostile import SEEDS, TARGETS

    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    wanted = parser.parse_args()
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{wanted.target}-"))
    for number, seed in enumerate(SEEDS[wanted.target]):
        (corpus / f"seed-{number}").write_bytes(seed)
    found = Path(tempfile.gettempdir()) / f"fuzz-{wanted.target}-found-"
    limits = [f"-max_total_time={wanted.seconds}", "-timeout=10", "-rss_limit_mb=1024", "-max_len=8192"]
    fuzzer.Setup([sys.argv[0], *limits, f"-artifact_prefix={found}", str(corpus)], TARGETS[wanted.target])
    fuzzer.Fuzz()


if __name__ == "__main__":
    main()
