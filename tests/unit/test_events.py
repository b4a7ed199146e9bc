"""The vocabulary: what is well formed, and how a decision reads in words."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordjournal.errors import InvalidEvent, InvalidName
from coordjournal.events import (
    EVENT_CLASSES,
    EVENT_TYPES,
    AliasRemoved,
    AliasSet,
    Event,
    OverlayRemoved,
    OverlaySet,
    PageForked,
    PagesBound,
    PagesMerged,
    PagesUnbound,
    check_name,
)
from tests.unit.strategies import any_events, legal_names

ONE_OF_EACH: dict[str, Event] = {
    "alias.set": AliasSet("Home", "Start"),
    "alias.removed": AliasRemoved("Home"),
    "binding.set": PagesBound("Home", "Start"),
    "binding.removed": PagesUnbound("Home", "Start"),
    "merge": PagesMerged(("Old", "Older"), "Start"),
    "fork": PageForked("Start", "Branch"),
    "overlay.set": OverlaySet("Start", "note", "text/plain", "hello"),
    "overlay.removed": OverlayRemoved("Start", "note"),
}

LEGAL = {
    "one byte": "x",
    "the smallest printable": "!",
    "512 bytes of ASCII": "x" * 512,
    "512 bytes in two-byte characters": "é" * 256,
    "512 bytes in four-byte characters": "𐀀" * 128,
    "spaces within": "a  b",
    "a no-break space within": "a\u00a0b",
    "an ideographic space within": "日\u3000本",
    "composed": "caf\u00e9",
    "a mark that has no composed form": "x\u0301",
    "compatibility characters, which NFC keeps": "ﬁ №",
    "right to left": "עברית",
    "a zero width joiner, of category Cf": "👩\u200d🔬",
    "a zero width space, which is no white space": "\u200b",
    "a byte order mark, of category Cf": "\ufeffx",
    "private use": "\ue000",
    "unassigned": "\U000e0fff",
    "punctuation that means something elsewhere": '../<a>"\\|?*:#%',
}

ILLEGAL = {
    "empty": "",
    "513 bytes of ASCII": "x" * 513,
    "513 bytes, the last character of two": "x" * 511 + "é",
    "257 two-byte characters": "é" * 257,
    "a mebibyte": "x" * (1 << 20),
    "a leading space": " a",
    "a trailing space": "a ",
    "nothing but a space": " ",
    "a leading no-break space": "\u00a0a",
    "a trailing no-break space": "a\u00a0",
    "a leading ideographic space": "\u3000日",
    "a trailing ideographic space": "日\u3000",
    "a trailing thin space": "a\u2009",
    "a trailing narrow no-break space": "a\u202f",
    "a trailing ogham space mark": "a\u1680",
    "NUL": "a\0b",
    "a line feed": "a\nb",
    "a carriage return": "a\rb",
    "a tab": "a\tb",
    "an escape": "a\x1bb",
    "DEL": "a\x7fb",
    "next line, a C1 control": "a\u0085b",
    "the last C1 control": "a\u009fb",
    "a high surrogate": "a\ud800b",
    "a low surrogate": "a\udfffb",
    "a line separator": "a\u2028b",
    "a paragraph separator": "a\u2029b",
    "a control after the 512th character": "é" * 512 + "\0",
    "decomposed": "cafe\u0301",
    "a singleton, which NFC replaces": "\u212b",
    "marks out of canonical order": "x\u0301\u0323",
    "Hangul in parts": "\u1112\u1161",
}


@pytest.mark.parametrize("name", LEGAL.values(), ids=LEGAL.keys())
def test_a_legal_name_is_taken(name: str) -> None:
    check_name(name, "page")


@pytest.mark.parametrize("name", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_an_illegal_name_is_refused_and_the_error_says_what_it_is_and_stays_short_and_printable(name: str) -> None:
    with pytest.raises(InvalidName, match=r"^the alias ") as caught:
        check_name(name, "the alias")
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [None, 1, b"name", ["name"]])
def test_a_name_that_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(InvalidName, match=f"not {type(value).__name__}"):
        check_name(value, "page")


def test_the_error_names_the_character_that_no_name_holds() -> None:
    with pytest.raises(InvalidName, match=r"character 3 is U\+2028, of category Zl"):
        check_name("ab\u2028", "page")


@given(legal_names(max_size=80))
def test_any_text_that_follows_the_rules_is_a_name(name: str) -> None:
    check_name(name, "page")


@pytest.mark.parametrize(("type_", "event"), ONE_OF_EACH.items())
def test_each_kind_is_well_formed_and_knows_its_type(type_: str, event: Event) -> None:
    event.check()
    assert event.type == type_


def test_the_vocabulary_has_these_eight_kinds() -> None:
    assert frozenset(ONE_OF_EACH) == EVENT_TYPES
    assert {type(event) for event in ONE_OF_EACH.values()} == set(EVENT_CLASSES)
    assert len(EVENT_CLASSES) == 8


@pytest.mark.parametrize("event", ONE_OF_EACH.values(), ids=ONE_OF_EACH.keys())
def test_an_event_is_frozen_and_equal_and_hashed_by_content(event: Event) -> None:
    twin = msgspec.structs.replace(event)
    assert twin == event
    assert hash(twin) == hash(event)
    with pytest.raises(AttributeError):
        setattr(event, event.__struct_fields__[0], "other")


NAME_FIELDS = [
    (event, field)
    for event in ONE_OF_EACH.values()
    for field in event.__struct_fields__
    if field not in ("sources", "media_type", "body")
]


@pytest.mark.parametrize(("event", "field"), NAME_FIELDS, ids=lambda value: getattr(value, "type", value))
@pytest.mark.parametrize("name", ["", " x", "x\n", 7], ids=["empty", "space", "line feed", "number"])
def test_every_name_of_every_kind_is_checked_and_the_error_names_the_field(
    event: Event, field: str, name: object
) -> None:
    changed: dict[str, Any] = {field: name}
    with pytest.raises(InvalidName, match=rf"^{event.type}: {field}\b"):
        msgspec.structs.replace(event, **changed).check()


def test_every_source_of_a_merge_is_checked_and_the_error_names_its_place() -> None:
    with pytest.raises(InvalidName, match=r"^merge: sources\[1\] "):
        PagesMerged(("A", "B "), "C").check()


@pytest.mark.parametrize("kind", [PagesBound, PagesUnbound])
def test_a_binding_of_a_page_with_itself_is_invalid(kind: type[PagesBound | PagesUnbound]) -> None:
    with pytest.raises(InvalidEvent, match="'A'"):
        kind("A", "A").check()
    kind("A", "a").check()


@pytest.mark.parametrize("sources", [(), ("A",), ("A", "A")])
def test_a_merge_without_a_source_besides_into_is_invalid(sources: tuple[str, ...]) -> None:
    with pytest.raises(InvalidEvent, match="no source besides into 'A'"):
        PagesMerged(sources, "A").check()


def test_a_merge_ties_its_sources_once_each_and_without_into() -> None:
    merge = PagesMerged(("B", "A", "B", "C"), "A")
    merge.check()
    assert merge.tied() == ("B", "C")
    assert merge.sources == ("B", "A", "B", "C")


def test_a_merge_takes_its_sources_as_a_list_too_and_is_the_same_event() -> None:
    sources: Any = ["B", "C"]
    merge = PagesMerged(sources, "A")
    sources.append("D")
    assert merge == PagesMerged(("B", "C"), "A")
    assert hash(merge) == hash(PagesMerged(("B", "C"), "A"))


@pytest.mark.parametrize("sources", ["BC", {"B": 1}, None, 5])
def test_a_merge_whose_sources_are_no_tuple_is_invalid(sources: Any) -> None:
    with pytest.raises(InvalidEvent, match="sources is a tuple of names"):
        PagesMerged(sources, "A").check()


def test_an_alias_or_a_fork_of_a_name_itself_is_well_formed_since_the_state_judges_it() -> None:
    AliasSet("A", "A").check()
    PageForked("A", "A").check()


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "text/markdown; charset=utf-8",
        "text/markdown;charset=utf-8;variant=GFM",
        'text/plain; title="a; b=c"',
        "application/vnd.wiki+json",
        "a/b",
        "a/" + "b" * 253,
    ],
)
def test_a_media_type_is_taken(media_type: str) -> None:
    OverlaySet("A", "note", media_type, "").check()


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text",
        "/plain",
        "text/",
        "text/plain/x",
        "text /plain",
        " text/plain",
        "text/plain\n",
        "text/plain; charset",
        "text/plain; charset=ü",
        "text/pläin",
        "a/" + "b" * 254,
        5,
        None,
    ],
)
def test_what_is_no_media_type_is_invalid(media_type: Any) -> None:
    with pytest.raises(InvalidEvent, match=r"^overlay\.set: media_type "):
        OverlaySet("A", "note", media_type, "").check()


def test_a_media_type_of_many_parameters_with_a_fault_at_the_end_is_refused_at_once() -> None:
    begun = time.perf_counter()
    with pytest.raises(InvalidEvent):
        OverlaySet("A", "note", "a/b" + ";a=a" * 18 + "\x7f", "").check()
    assert time.perf_counter() - begun < 0.5


@pytest.mark.parametrize("body", ["", "line\nline\r\n", "\0", "日本\u2028語", " spaces ", "cafe\u0301", "x" * 100_000])
def test_a_body_is_any_text(body: str) -> None:
    OverlaySet("A", "note", "text/plain", body).check()


@pytest.mark.parametrize("body", ["a\ud800", "\udfff", b"bytes", None])
def test_a_body_that_is_no_utf_8_text_is_invalid(body: Any) -> None:
    with pytest.raises(InvalidEvent, match=r"^overlay\.set: .*body"):
        OverlaySet("A", "note", "text/plain", body).check()


@pytest.mark.parametrize(
    ("event", "names"),
    [
        (AliasSet("B", "A"), ("B", "A")),
        (AliasRemoved("B"), ("B",)),
        (PagesBound("B", "A"), ("B", "A")),
        (PagesUnbound("B", "A"), ("B", "A")),
        (PagesMerged(("C", "B"), "A"), ("C", "B", "A")),
        (PageForked("B", "A"), ("B", "A")),
        (OverlaySet("B", "A", "text/plain", "C"), ("B",)),
        (OverlayRemoved("B", "A"), ("B",)),
    ],
)
def test_the_names_of_an_event_are_in_field_order_and_an_overlay_is_no_page(
    event: Event, names: tuple[str, ...]
) -> None:
    assert event.names() == names


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (AliasSet("Home", "shard-a:Start"), "alias: Home → shard-a:Start"),
        (AliasRemoved("Home"), "unalias: Home"),
        (PagesBound("A", "B"), "bind: A = B"),
        (PagesUnbound("A", "B"), "unbind: A ≠ B"),
        (PagesMerged(("A", "B", "C"), "D"), "merge: A, B, C → D"),
        (PagesMerged(("A", "B", "C", "E", "F"), "D"), "merge: A, B, C and 2 more → D"),
        (PageForked("A", "B"), "fork: A ⇒ B"),
        (OverlaySet("A", "note", "text/plain", "text"), "overlay: note on A"),
        (OverlayRemoved("A", "note"), "withdraw: note from A"),
    ],
)
def test_a_decision_reads_in_words(event: Event, words: str) -> None:
    assert event.words() == words


@given(any_events())
@settings(max_examples=60)
def test_any_event_of_legal_names_is_well_formed_and_its_words_are_one_line(event: Event) -> None:
    event.check()
    assert len(event.words().splitlines()) == 1


def test_long_names_are_cut_in_words() -> None:
    words = AliasSet("x" * 512, "y" * 60).words()
    assert words == "alias: " + "x" * 59 + "… → " + "y" * 60


@given(st.text(st.characters(), max_size=8))
def test_no_text_makes_the_check_of_a_name_fail_otherwise_than_by_refusing(name: str) -> None:
    try:
        check_name(name, "page")
    except InvalidName:
        return
    assert name.strip() == name
    assert name.encode()
