"""Lines of JSON from a stream: bounded, and strictly understood."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from coordjournal.errors import InvalidEvent, TooLarge

MAX_LINE_BYTES: Final = 4 << 20  # an append of 1 MiB, with every character escaped that can be
_MAX_DIGITS: Final = 20


def read_lines(read: Callable[[], bytes], max_bytes: int = MAX_LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of what `read` gives, none only at the end, as they come and without their ends.

    A line that is too long is cut off one byte past `max_bytes`, so that it can be told, and its rest is
    skipped: memory is bounded, whatever comes. A line ends with LF or CRLF.
    """
    start = bytearray()
    skipping = False
    while chunk := read():
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            if not skipping:
                yield _line(start + part, max_bytes)
            start.clear()
            skipping = False
        if not skipping:
            start += rest
            if len(start) > max_bytes + 1:  # one more, since the last may belong to the line's end
                yield _line(start, max_bytes)
                start.clear()
                skipping = True
    if start:
        yield _line(start, max_bytes)


def _line(line: bytearray, max_bytes: int) -> bytes:
    return bytes(line.removesuffix(b"\r")[: max_bytes + 1])


def strict_json(line: bytes) -> Any:
    """Return the JSON value that a line is.

    What two readers might understand differently is refused: a field that stands twice, NaN and the
    infinities, half of a surrogate pair, anything that is not UTF-8. Raises `InvalidEvent` for these and
    for what is not JSON, or is nested too deeply; `TooLarge` if it has more than `MAX_LINE_BYTES`.
    """
    if len(line) > MAX_LINE_BYTES:
        raise TooLarge(f"the line has more than {MAX_LINE_BYTES:,} bytes")
    try:
        found = json.loads(line.decode(), object_pairs_hook=_unique, parse_int=_int, parse_constant=_no_number)
        if b"\\ud" in line or b"\\uD" in line:
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except UnicodeDecodeError as error:
        fault = f"byte {error.start + 1} is not UTF-8"
    except UnicodeEncodeError:
        fault = "an escape in it is half of a surrogate pair"
    except json.JSONDecodeError as error:
        fault = f"not JSON: {error.msg} at character {error.pos + 1}" if line.strip() else "it is empty"
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError as error:
        fault = str(error)
    raise InvalidEvent(f"the line is refused: {fault}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        double = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the field {double[:60]!a} stands twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits is no seq")
    return int(text)
