"""Entries and appends: their rules, their canonical bytes, and the errors that speak of them."""

from __future__ import annotations

import copy
import json
import pickle
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordjournal import errors
from coordjournal.entry import (
    MAX_APPEND_BYTES,
    MAX_SEQ,
    Append,
    Appended,
    Entry,
    Head,
    check_actor,
    check_key,
    check_space,
    check_time,
    decode_entries,
    encode_entries,
    format_time,
)
from coordjournal.errors import (
    Conflict,
    CoordJournalError,
    Corrupt,
    InvalidEvent,
    InvalidName,
    OperatorNeeded,
    TooLarge,
    UnknownEvent,
)
from coordjournal.events import (
    AliasRemoved,
    AliasSet,
    Event,
    OverlayRemoved,
    OverlaySet,
    PageForked,
    PagesBound,
    PagesMerged,
    PagesUnbound,
)
from tests.unit.strategies import TIME, any_events


def append(*events: Event, **changes: Any) -> Append:
    fields: dict[str, Any] = {"key": "k-1", "actor": "Ada", "at": TIME}
    return Append(events, **(fields | changes))


def line(
    event: str = '{"type":"alias.removed","alias":"A"}',
    *,
    seq: str = "7",
    key: str = '"k-1"',
    at: str = f'"{TIME}"',
    actor: str = '"Ada"',
) -> bytes:
    return f'{{"seq":{seq},"key":{key},"at":{at},"actor":{actor},"event":{event}}}\n'.encode()


def decode(data: bytes, first: int = 7) -> tuple[Entry, ...]:
    return decode_entries(data, first, "c0ffee", 3)


# Canonical bytes

BYTES = {
    AliasSet("Home", "日本"): '{"type":"alias.set","alias":"Home","target":"日本"}',
    AliasRemoved("Home"): '{"type":"alias.removed","alias":"Home"}',
    PagesBound("B", "A"): '{"type":"binding.set","a":"B","b":"A"}',
    PagesUnbound("B", "A"): '{"type":"binding.removed","a":"B","b":"A"}',
    PagesMerged(("B", "A", "B", "C"), "A"): '{"type":"merge","sources":["B","A","B","C"],"into":"A"}',
    PageForked("é/ü", "𐀀"): '{"type":"fork","source":"é/ü","fork":"𐀀"}',
    OverlaySet("P", "note", "text/plain", 'a\n\t"\\\0\x1f\x7f\u2028é'): (
        '{"type":"overlay.set","page":"P","overlay":"note","media_type":"text/plain",'
        '"body":"a\\n\\t\\"\\\\\\u0000\\u001f\x7f\u2028é"}'
    ),
    OverlayRemoved("P", "note"): '{"type":"overlay.removed","page":"P","overlay":"note"}',
}


@pytest.mark.parametrize(("event", "text"), BYTES.items(), ids=lambda value: getattr(value, "type", ""))
def test_the_bytes_of_an_entry_are_exactly_these(event: Event, text: str) -> None:
    expected = f'{{"seq":7,"key":"k-1","at":"{TIME}","actor":"Zoë <no>","event":{text}}}\n'
    assert append(event, actor="Zoë <no>").encode(7) == expected.encode()


@pytest.mark.parametrize("event", BYTES, ids=lambda event: event.type)
def test_each_kind_comes_back_as_it_was(event: Event) -> None:
    assert decode(append(event).encode(7)) == (Entry(7, "k-1", TIME, "Ada", event, "c0ffee", 3),)


def test_an_append_is_one_line_an_event_with_the_seqs_from_the_first() -> None:
    data = append(AliasSet("A", "B"), AliasRemoved("A"), AliasSet("A", "C")).encode(41)
    assert [json.loads(each)["seq"] for each in data.splitlines()] == [41, 42, 43]
    assert data.endswith(b"}\n")
    assert not data.endswith(b"\n\n")
    assert data.startswith(b'{"seq":41,"key":"k-1","at":"')


@given(st.lists(any_events(), min_size=1, max_size=5), st.integers(1, MAX_SEQ - 5))
@settings(max_examples=60, deadline=None)
def test_any_append_comes_back_as_it_was_and_gives_the_same_bytes_again(events: list[Event], first: int) -> None:
    asked = append(*events)
    asked.check()
    data = asked.encode(first)
    entries = decode(data, first)
    assert tuple(entry.event for entry in entries) == asked.events
    assert [entry.seq for entry in entries] == list(range(first, first + len(events)))
    assert {(entry.key, entry.at, entry.actor, entry.commit, entry.term) for entry in entries} == {
        ("k-1", TIME, "Ada", "c0ffee", 3)
    }
    assert encode_entries(entries) == data
    assert data.count(b"\n") == len(events)


def test_expect_is_no_part_of_the_bytes() -> None:
    event = AliasSet("A", "B")
    assert append(event, expect=6).encode(7) == append(event).encode(7)


def _filled(size: int, text: str = "x") -> Append:
    """Return an append that is `size` bytes long as the entry 1, its body made of `text`."""
    bare = len(append(OverlaySet("P", "o", "text/plain", "")).encode(1))
    width = len(json.dumps(text, ensure_ascii=False).encode()) - 2
    count, rest = divmod(size - bare, width)
    return append(OverlaySet("P", "o", "text/plain", text * count + "x" * rest))


@pytest.mark.parametrize("text", ["x", "é", "\n", "\0"], ids=["ASCII", "two bytes", "escaped short", "escaped long"])
def test_an_append_of_just_a_mebibyte_is_possible_and_a_byte_more_is_too_large(text: str) -> None:
    assert len(_filled(MAX_APPEND_BYTES, text).encode(1)) == MAX_APPEND_BYTES == 1 << 20
    with pytest.raises(TooLarge, match="1,048,577 bytes, at most 1,048,576"):
        _filled(MAX_APPEND_BYTES + 1, text).encode(1)


def test_the_size_is_that_of_the_whole_batch() -> None:
    half = _filled(MAX_APPEND_BYTES // 2).events
    assert len(append(*half, *half).encode(1)) == MAX_APPEND_BYTES
    with pytest.raises(TooLarge):
        append(*half, *half, AliasRemoved("A")).encode(1)


# What an append may be

SPACES = ["a", "7", "wiki", "a-b-", "0" * 63, "federation-2"]
NO_SPACES = ["", "-a", "A", "a_b", "a b", "a.b", "a/b", "é", "a\n", "a" * 64, "٣", None, 5, b"a"]
KEYS = ["k", "!", "~", "x" * 128, "a/b#c?d", "<>", "\\"]
NO_KEYS = ["", " ", "a b", "a ", "k\n", "k\x7f", "é", "x" * 129, None, 5, b"k"]
ACTORS = ["Ada", "x" * 254, "é" * 127, "Ada Lovelace", "a\u00a0b", "ada@example.org", "日本", "cafe\u0301"]
NO_ACTORS = [
    "",
    "x" * 255,
    "é" * 127 + "x",
    "<a",
    "a>",
    "日<",
    "日>",
    "a\nb",
    "\0",
    "a\x7f",
    "é\u0085",
    "\ud800",
    None,
    5,
]
TIMES = [
    "2026-01-31T12:00:00.000000Z",
    "0001-01-01T00:00:00.000000Z",
    "9999-12-31T23:59:59.999999Z",
    "2024-02-29" + TIME[10:],
]
NO_TIMES = [
    "",
    "yesterday",
    "2026-01-31T12:00:00Z",
    "2026-01-31T12:00:00.000Z",
    "2026-01-31T12:00:00.0000000Z",
    "2026-01-31T12:00:00.000000",
    "2026-01-31T12:00:00.000000z",
    "2026-01-31T12:00:00.000000+00:00",
    "2026-01-31 12:00:00.000000Z",
    "2026-01-31T12:00:00,000000Z",
    "2026-01-31T12:00:00.000000Z\n",
    " 2026-01-31T12:00:00.000000Z",
    "2026-02-30T12:00:00.000000Z",
    "2025-02-29T12:00:00.000000Z",
    "2026-13-01T12:00:00.000000Z",
    "2026-01-31T12:60:00.000000Z",
    "2026-01-31T25:00:00.000000Z",
    "2026-01-31T23:59:60.000000Z",
    "0000-01-31T12:00:00.000000Z",
    "٢٠٢٦-01-31T12:00:00.000000Z",
    datetime(2026, 1, 31, tzinfo=UTC),
    None,
]


@pytest.mark.parametrize("space", SPACES)
def test_a_space_is_taken(space: str) -> None:
    check_space(space)


@pytest.mark.parametrize("space", NO_SPACES)
def test_what_is_no_space_is_refused(space: object) -> None:
    with pytest.raises(InvalidName, match=r"^space "):
        check_space(space)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_taken(key: str) -> None:
    check_key(key)
    append(AliasRemoved("A"), key=key).check()


@pytest.mark.parametrize("key", NO_KEYS)
def test_what_is_no_key_is_refused(key: object) -> None:
    with pytest.raises(InvalidName, match=r"^key "):
        check_key(key)
    with pytest.raises(InvalidName, match=r"^key "):
        append(AliasRemoved("A"), key=key).check()


@pytest.mark.parametrize("actor", ACTORS)
def test_an_actor_is_taken(actor: str) -> None:
    check_actor(actor)
    append(AliasRemoved("A"), actor=actor).check()


@pytest.mark.parametrize("actor", NO_ACTORS)
def test_what_is_no_actor_is_refused(actor: object) -> None:
    with pytest.raises(InvalidName, match=r"^actor "):
        check_actor(actor)
    with pytest.raises(InvalidName, match=r"^actor "):
        append(AliasRemoved("A"), actor=actor).check()


@pytest.mark.parametrize("at", TIMES)
def test_a_time_is_taken(at: str) -> None:
    check_time(at)
    append(AliasRemoved("A"), at=at).check()


@pytest.mark.parametrize("at", NO_TIMES)
def test_what_is_no_time_of_the_one_form_is_refused(at: object) -> None:
    with pytest.raises(InvalidEvent, match=r"^at "):
        check_time(at)
    with pytest.raises(InvalidEvent, match=r"^at "):
        append(AliasRemoved("A"), at=at).check()


@given(st.datetimes(timezones=st.sampled_from((UTC, timezone(timedelta(hours=-9, minutes=-30))))))
def test_any_time_is_formatted_as_utc_with_six_digits_and_taken(when: datetime) -> None:
    if not 2 <= when.year <= 9998:
        when = when.replace(year=2026, day=1)
    at = format_time(when)
    check_time(at)
    assert datetime.fromisoformat(at) == when
    assert len(at) == len(TIME)


def test_an_early_year_is_written_with_four_digits() -> None:
    assert format_time(datetime(45, 3, 15, 12, tzinfo=UTC)) == "0045-03-15T12:00:00.000000Z"


@pytest.mark.parametrize("expect", [None, 0, 1, MAX_SEQ])
def test_expect_is_a_seq_or_none(expect: int | None) -> None:
    append(AliasRemoved("A"), expect=expect).check()


@pytest.mark.parametrize("expect", [-1, MAX_SEQ + 1, 1.0, "1", True, False])
def test_expect_is_nothing_else(expect: object) -> None:
    with pytest.raises(InvalidEvent, match=r"^expect: "):
        append(AliasRemoved("A"), expect=expect).check()


def test_an_append_holds_at_least_one_event() -> None:
    with pytest.raises(InvalidEvent, match="at least one event"):
        append().check()


@pytest.mark.parametrize("stranger", [None, "alias.set", {"type": "alias.removed", "alias": "A"}, Head()])
def test_an_append_holds_events_only_and_the_error_tells_which_is_none(stranger: Any) -> None:
    with pytest.raises(InvalidEvent, match=f"^event 2: {type(stranger).__name__} is not an event"):
        append(AliasRemoved("A"), stranger).check()


def test_every_event_of_an_append_is_checked() -> None:
    with pytest.raises(InvalidName, match="alias"):
        append(AliasRemoved("A"), AliasRemoved("A\n")).check()
    with pytest.raises(InvalidEvent, match="binding"):
        append(AliasRemoved("A"), PagesBound("A", "A")).check()


def test_an_append_in_the_log_knows_its_place_and_what_it_answers() -> None:
    asked = append(AliasSet("A", "B"), AliasRemoved("A"))
    stands = Appended("c0ffee", "beef", 3, decode(asked.encode(7)))
    assert (stands.first, stands.seq, stands.key) == (7, 8, "k-1")
    assert stands.head == Head(8, "c0ffee", 3)
    assert stands.answers(asked)
    assert stands.answers(append(*asked.events, key="another", at=TIMES[1], expect=0))
    assert not stands.answers(append(*asked.events, actor="Bob"))
    assert not stands.answers(append(*asked.events[:1]))
    assert not stands.answers(append(*reversed(asked.events)))


# Damaged and foreign bytes

DAMAGED = {
    "nothing": b"",
    "an empty line": b"\n",
    "no newline at the end": line()[:-1],
    "a space in the place of the newline": line()[:-1] + b" ",
    "cut within": line()[:40],
    "cut within, with a newline": line()[:40] + b"\n",
    "an empty line after it": line() + b"\n",
    "zeros": b"\0" * 100 + b"\n",
    "two values in a line": line()[:-1] + line(),
    "not JSON": b"alias: Home\n",
    "an array": b"[1]\n",
    "a text": b'"entry"\n',
    "null": b"null\n",
    "a byte order mark": b"\xef\xbb\xbf" + line(),
    "not UTF-8 in a name": line().replace(b'"A"', b'"\xff"'),
    "not UTF-8 in the actor": line().replace(b"Ada", b"A\xe9a"),
    "seq is a text": line(seq='"7"'),
    "seq is a float": line(seq="7.5"),
    "seq is true": line(seq="true"),
    "seq is null": line(seq="null"),
    "seq is another": line(seq="8"),
    "seq is huge": line(seq="7" * 400),
    "key is a number": line(key="1"),
    "actor is null": line(actor="null"),
    "at is a number": line(at="0"),
    "event is null": line("null"),
    "event is a text": line('"alias.removed"'),
    "event is an array": line('["alias.removed","A"]'),
    "event without type": line('{"alias":"A"}'),
    "type is a number": line('{"type":1,"alias":"A"}'),
    "type is null": line('{"type":null,"alias":"A"}'),
    "a field of the event is missing": line('{"type":"alias.set","alias":"A"}'),
    "a field of the event is unknown": line('{"type":"alias.removed","alias":"A","why":"x"}'),
    "a field of the event is a number": line('{"type":"alias.removed","alias":1}'),
    "sources are a text": line('{"type":"merge","sources":"AB","into":"C"}'),
    "sources hold a number": line('{"type":"merge","sources":["A",1],"into":"C"}'),
    "a field of the entry is unknown": line().replace(b'"event"', b'"commit":"c0ffee","event"'),
    "a field of the entry is missing": line().replace(b'"key":"k-1",', b""),
    "an illegal name": line('{"type":"alias.removed","alias":" A"}'),
    "a name with an escaped control": line('{"type":"alias.removed","alias":"A\\u0000"}'),
    "a name with an escaped surrogate": line('{"type":"alias.removed","alias":"A\\ud800B"}'),
    "an ill-formed binding": line('{"type":"binding.set","a":"A","b":"A"}'),
    "an ill-formed merge": line('{"type":"merge","sources":["A"],"into":"A"}'),
    "an ill-formed media type": line('{"type":"overlay.set","page":"A","overlay":"o","media_type":"","body":""}'),
    "an illegal key": line(key='""'),
    "an illegal actor": line(actor='"<Ada>"'),
    "an illegal time": line(at='"yesterday"'),
    "deep nesting": b"[" * 200_000 + b"]" * 200_000 + b"\n",
    "deep nesting in the event": line('{"type":"alias.removed","alias":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "deep nesting in an unknown field": line('{"type":"alias.removed","alias":"A","x":' + '{"x":' * 100_000),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_bytes_are_corrupt_and_the_seq_and_the_commit_are_told(data: bytes) -> None:
    second = data.startswith(line())
    with pytest.raises(Corrupt, match=r"^entry \d+\b.*\(in commit c0ffee\); ") as caught:
        decode(data)
    assert caught.value.seq == (8 if second else 7)


def test_the_seq_of_the_first_damaged_line_is_told() -> None:
    with pytest.raises(Corrupt) as caught:
        decode(line() + line(seq="8") + b"{}\n" + b"{}\n")
    assert caught.value.seq == 9


@pytest.mark.parametrize("seq", ["7", "9"])
def test_seqs_that_stand_still_or_leap_are_corrupt(seq: str) -> None:
    with pytest.raises(Corrupt) as caught:
        decode(line() + line(seq=seq))
    assert caught.value.seq == 8


@pytest.mark.parametrize(
    "other",
    [{"key": '"k-2"'}, {"actor": '"Bob"'}, {"at": '"2026-01-31T12:00:00.000001Z"'}],
    ids=lambda each: str(*each),
)
def test_lines_that_are_not_of_one_append_are_corrupt(other: dict[str, str]) -> None:
    with pytest.raises(Corrupt) as caught:
        decode(line() + line(seq="8") + line(seq="9", **other))
    assert caught.value.seq == 9


@pytest.mark.parametrize(
    "event",
    [
        '{"type":"page.deleted","page":"A"}',
        '{"type":"page.deleted","page":{"deeply":[[["nested"]]]}}',
        '{"page":"A","type":"page.deleted"}',
        '{"type":""}',
        '{"type":"Alias.set","alias":"A","target":"B"}',
        '{"type":"alias.set ","alias":"A","target":"B"}',
    ],
)
def test_an_event_type_of_another_version_is_unknown_and_its_seq_is_told(event: str) -> None:
    with pytest.raises(UnknownEvent, match=r"^entry 8 .*\(in commit c0ffee\); run a newer version") as caught:
        decode(line() + line(event, seq="8"))
    assert caught.value.seq == 8


def test_a_long_unknown_type_is_cut_in_the_error() -> None:
    with pytest.raises(UnknownEvent) as caught:
        decode(line(json.dumps({"type": "x" * 5000})))
    assert len(str(caught.value)) < 300


# The tree of errors

CODES = {
    errors.CoordJournalError: "coord_journal_error",
    errors.Rejected: "rejected",
    errors.InvalidEvent: "invalid_event",
    errors.InvalidName: "invalid_name",
    errors.AliasCycle: "alias_cycle",
    errors.NothingToRetract: "nothing_to_retract",
    errors.NotForkable: "not_forkable",
    errors.KeyReused: "key_reused",
    errors.TooLarge: "too_large",
    errors.SpaceFull: "space_full",
    errors.Conflict: "conflict",
    errors.NotFound: "not_found",
    errors.Unavailable: "unavailable",
    errors.Undecided: "undecided",
    errors.OperatorNeeded: "operator_needed",
    errors.Corrupt: "corrupt",
    errors.UnknownEvent: "unknown_event",
    errors.UnknownFormat: "unknown_format",
    errors.WrongAuthority: "wrong_authority",
    errors.ForeignRepository: "foreign_repository",
    errors.Closed: "closed",
    errors.ForkedProcess: "forked_process",
}
TREE = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, CoordJournalError)]


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=CODES.values())
def test_the_code_of_an_error_is_its_name_in_snake_case(kind: type[CoordJournalError], code: str) -> None:
    assert kind.code == code
    assert kind("what").code == code


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.code)
def test_every_code_is_one_class_and_reads_as_the_name_of_it(kind: type[CoordJournalError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert kind.code.replace("_", "") == kind.__name__.lower()
    assert [each for each in TREE if each.code == kind.code] == [kind]


@pytest.mark.parametrize("base", [errors.Rejected, errors.OperatorNeeded], ids=lambda base: base.code)
def test_what_the_caller_does_next_is_told_by_one_base_and_no_other(base: type[CoordJournalError]) -> None:
    for kind in TREE:
        bases = [each for each in TREE if each is not kind and issubclass(kind, each)]
        assert bases == sorted(bases, key=lambda each: len(each.__mro__))
        assert len(kind.__bases__) == 1
        if issubclass(kind, base) and kind is not base:
            assert base in bases


def _told(error: BaseException) -> tuple[object, ...]:
    return type(error), error.args, vars(error), str(error)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.code)
def test_an_error_crosses_processes_unchanged(kind: type[CoordJournalError], protocol: int) -> None:
    error = kind("what is wrong: é")
    error.add_note("a note")
    assert _told(pickle.loads(pickle.dumps(error, protocol))) == _told(error)
    assert _told(copy.copy(error)) == _told(error)


@pytest.mark.parametrize(
    ("error", "fields", "text"),
    [
        (Conflict("the head is 7", 7), {"head_seq": 7}, "the head is 7"),
        (
            OperatorNeeded("w", "a place", "run x"),
            {"what": "w", "where": "a place", "run": "run x"},
            "w (in a place); run x",
        ),
        (OperatorNeeded("w"), {"what": "w", "where": "", "run": ""}, "w"),
        (Corrupt("w", "p", "run x", seq=7), {"what": "w", "where": "p", "run": "run x", "seq": 7}, "w (in p); run x"),
        (
            UnknownEvent("w", "p", "run x", seq=8),
            {"what": "w", "where": "p", "run": "run x", "seq": 8},
            "w (in p); run x",
        ),
        (
            Corrupt("w"),
            {"what": "w", "where": "", "run": "run `coordjournal verify` and restore from a clone", "seq": 0},
            "w; run `coordjournal verify` and restore from a clone",
        ),
        (
            UnknownEvent("w", seq=9),
            {"what": "w", "where": "", "run": "run a newer version of coordjournal on this repository", "seq": 9},
            "w; run a newer version of coordjournal on this repository",
        ),
    ],
)
def test_an_error_that_carries_fields_keeps_them_across_processes(
    error: CoordJournalError, fields: dict[str, object], text: str
) -> None:
    for twin in (error, pickle.loads(pickle.dumps(error))):
        assert vars(twin) == fields
        assert str(twin) == text


def test_a_stored_name_is_read_whatever_this_pythons_unicode_says_of_its_form() -> None:
    event = AliasRemoved("cafe\u0301")
    with pytest.raises(InvalidName, match="normalization"):
        event.check()
    data = Append((event,), "k", "a", "2026-01-31T12:00:00.000000Z").encode(1)
    assert decode_entries(data, 1, "c", 0)[0].event == event
