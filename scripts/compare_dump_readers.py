"""What reading a dump costs with each reader, and what each makes of literals that are hard to read.

Each reader runs in a process of its own: ours with this interpreter, the others in a virtual environment
that is made for the purpose and thrown away. One that cannot be installed is left out.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.metadata
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

CHECKOUT: Final = Path(__file__).resolve().parent.parent
ROUNDS: Final = 5

Title = str | bytes | None

PROBES: Final[dict[str, tuple[bytes, str | None]]] = {
    "`),(`": (b"'a),(b'", "a),(b"),
    "NULL": (b"NULL", None),
    "`''`": (b"'It''s'", "It's"),
    r"`\'`": (rb"'It\'s\\'", "It's\\"),
    "a bad byte": (b"'a\xffb'", "a\udcffb"),
}
"""Literals in the place of a title, and what they stand for: MySQL 8.0 Reference Manual, section 11.1.1."""


def ours(dump: Path) -> Iterator[Title]:
    sys.path.insert(0, str(CHECKOUT))
    sqldump: Any = importlib.import_module("coordjournal.importers.sqldump")
    for _, _, title in sqldump.read_rows(dump, "page", ("page_id", "page_namespace", "page_title")):
        yield title


def mwsql(dump: Path) -> Iterator[Title]:
    library: Any = importlib.import_module("mwsql")
    for row in library.Dump.from_file(dump).rows():
        yield row[2]


def kwnlp(dump: Path) -> Iterator[Title]:
    library: Any = importlib.import_module("kwnlp_sql_parser")
    for _, _, match in library.WikipediaSqlDump(str(dump)).iter_matched_rows():
        yield match["page_title"]


def sqlglot(dump: Path) -> Iterator[Title]:
    library: Any = importlib.import_module("sqlglot")
    for statement in library.parse(text_of(dump), read="mysql"):
        if isinstance(statement, library.exp.Insert):
            for row in statement.expression.expressions:
                title = row.expressions[2]
                yield None if isinstance(title, library.exp.Null) else title.this


def sqlparse(dump: Path) -> Iterator[Title]:
    lexer: Any = importlib.import_module("sqlparse.lexer")
    for _ in lexer.tokenize(text_of(dump)):
        pass
    yield from ()  # tokens are all that it gives: rows and values would be ours to make


def text_of(dump: Path) -> str:
    data = dump.read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode(errors="surrogateescape")


READERS: Final[dict[str, Callable[[Path], Iterator[Title]]]] = {
    "ours": ours,
    "mwsql==1.0.4": mwsql,
    "kwnlp-sql-parser==0.0.2": kwnlp,
    "sqlglot==30.30.0": sqlglot,
    "sqlparse==0.6.1": sqlparse,
}


def measure(reader: str, dump: Path, scratch: Path) -> dict[str, Any]:
    """Return what one reader does, in this process."""
    read = READERS[reader]
    times = []
    rows = 0
    for _ in range(ROUNDS):
        before = time.process_time()
        rows = sum(1 for _ in read(dump))
        times.append(time.process_time() - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    found: dict[str, Any] = {"licence": licence(reader), "seconds": min(times), "peak": peak, "rows": rows}
    for name, (literal, meant) in PROBES.items():
        found[name] = judged(read, probe(dump, literal, scratch), meant)
    return found


def judged(read: Callable[[Path], Iterator[Title]], dump: Path, meant: str | None) -> str:
    """Say what a reader makes of the one row of a dump, whose title is `meant`."""
    try:
        titles = list(read(dump))
    except Exception as error:  # noqa: BLE001  # whatever a library raises is what is asked here
        return f"raises {type(error).__name__}"
    shown = [title.decode(errors="surrogateescape") if isinstance(title, bytes) else title for title in titles]
    if len(shown) == 1:
        return "right" if shown[0] == meant else f"gives {shown[0]!a}"
    return f"gives {len(shown)} rows" if shown else "no row"


def probe(dump: Path, literal: bytes, scratch: Path) -> Path:
    """Write the dump with its first row only, and `literal` for the title of that."""
    data = gzip.decompress(dump.read_bytes())
    row = re.search(rb"VALUES \((\d+,\d+),'[^'\\]*',([^()]*)\)", data)
    assert row, "the dump does not begin with a row of the table `page`"
    path = scratch / "xxwiki-20160111-page.sql"
    path.write_bytes(
        data[: row.start()] + b"VALUES (%s,%s,%s);\n" % (row[1], literal, row[2]) + b"-- Dump completed on 2016-01-12\n"
    )
    return path


def licence(reader: str) -> str:
    meta: Any = importlib.metadata.metadata(reader.partition("==")[0] if reader != "ours" else "coordjournal")
    words = meta.get("License-Expression") or meta.get("License") or ""
    if not words or "\n" in words:
        kinds = [line for line in meta.get_all("Classifier", []) if line.startswith("License ::")]
        words = kinds[0].rpartition(" :: ")[2] if kinds else "?"
    return words


def compare(dump: Path) -> None:
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        python = Path(scratch) / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
        for reader in READERS:
            if reader != "ours":
                install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", reader]
                if subprocess.run(install, check=False).returncode:
                    print(f"{reader} cannot be installed here, and is left out", file=sys.stderr)
                    continue
            print(f"reading with {reader}", file=sys.stderr)
            run = [sys.executable if reader == "ours" else str(python), __file__, str(dump), "--reader", reader]
            done = subprocess.run([*run, "--scratch", scratch], check=True, stdout=subprocess.PIPE)
            found[reader] = json.loads(done.stdout)
    show(found)


def show(found: dict[str, dict[str, Any]]) -> None:
    line("reader", "licence", "CPU, best of five", "peak memory", "rows", *PROBES)
    line(*["---"] * (5 + len(PROBES)))
    for reader, facts in found.items():
        seconds = f"{facts['seconds']:.3f} s ({facts['seconds'] / found['ours']['seconds']:.1f}×)"
        cells = [reader.replace("==", " "), facts["licence"], seconds, f"{facts['peak']:.0f} MiB"]
        if READERS[reader] is sqlparse:
            line(*cells, *["tokens only"] * (1 + len(PROBES)))
        else:
            line(*cells, f"{facts['rows']:,}", *[facts[name] for name in PROBES])


def line(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path, help="a dump of the table `page`, gzip")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        print(json.dumps(measure(arguments.reader, arguments.dump, arguments.scratch)))
    else:
        compare(arguments.dump)


if __name__ == "__main__":
    main()
