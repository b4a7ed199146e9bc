"""What lies in etcd: the keys under one prefix, and the bytes of their values.

Kind first, so that roles can be granted by range. Values are JSON, canonical: what does not decode and
encode to the same bytes again (doubled fields, spare space, numbers out of range) is not well formed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, TypeVar

import msgspec

from coordjournal import errors
from coordjournal.entry import Append, Head, Receipt
from coordjournal.errors import CoordJournalError, InvalidEvent, OperatorNeeded, Rejected, Undecided
from coordjournal.etcd import end_of
from coordjournal.events import Event

Role = Literal["auto", "client", "holder"]
"""Whether a process may hold spaces: where it needs them; never; and those that nobody else serves too."""

MAX_INTENT_APPENDS: Final = 128
_MAX_TEXT: Final = 600
_MAX_KEY: Final = 128

_PREFIX = re.compile(r"/?[\x21-\x7e]*/")
_INTENT = re.compile(rb"([a-z0-9][a-z0-9-]{0,62})/([0-9a-f]{32})/([0-9]{12})")
_SPACE = re.compile(rb"[a-z0-9][a-z0-9-]{0,62}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SESSION = re.compile(rb"[0-9a-f]{32}")

T = TypeVar("T")


class NodeValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who a session is: `nodes/<session>`. `since` is a time of the form that `at` has, `ttl` in seconds."""

    host: str
    pid: int
    version: str
    since: str
    role: Role
    ttl: int


class HeadValue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The head of a space: `heads/<space>`. `space` is the id that its `space.json` gives.

    `mark` is a random word that `recover` leaves, so that no one who knew the head before may publish on
    it; `left` is true where the journal left etcd.
    """

    seq: int
    commit: str
    term: int
    space: str
    mark: str = ""
    left: bool = False

    @property
    def head(self) -> Head:
        """The head itself."""
        return Head(self.seq, self.commit, self.term)


class IntentAppend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One append of an intent."""

    key: str
    actor: str
    at: str
    events: tuple[Event, ...]
    expect: int | None = None


class Accepted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="accepted", omit_defaults=True):
    """An outcome: the append stands in the log."""

    key: str
    first: int
    seq: int
    commit: str
    term: int
    duplicate: bool = False


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused", omit_defaults=True):
    """An outcome: the append was refused with the error `name`."""

    key: str
    name: str
    text: str
    head_seq: int = 0


OutcomeItem = Accepted | Refusal


class Keys:
    """The keys under a prefix, which ends in a slash."""

    def __init__(self, prefix: str) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise InvalidEvent(f"prefix {prefix!r}: printable ASCII that ends in '/', such as /coordjournal/")
        self.prefix = prefix.encode()
        self.journal = self.prefix + b"journal"
        self.nodes = self.prefix + b"nodes/"
        self.holders = self.prefix + b"holders/"
        self.heads = self.prefix + b"heads/"
        self.intents = self.prefix + b"intents/"
        self.outcomes = self.prefix + b"outcomes/"
        self.successors = self.prefix + b"successors/"

    def node(self, session: str) -> bytes:
        """Return the key of a session."""
        return self.nodes + session.encode()

    def holder(self, space: str) -> bytes:
        """Return the key that a space's holder has put."""
        return self.holders + space.encode()

    def head(self, space: str) -> bytes:
        """Return the key of a space's published head."""
        return self.heads + space.encode()

    def successor(self, space: str) -> bytes:
        """Return the key that names the session asked to take a space over."""
        return self.successors + space.encode()

    def intents_of(self, space: str, session: str = "") -> bytes:
        """Return the prefix of a space's intents, of all sessions or of one."""
        return self.intents + f"{space}/{session}{'/' if session else ''}".encode()

    def intent(self, space: str, session: str, number: int) -> bytes:
        """Return the key of one intent."""
        return self.intents + f"{space}/{session}/{number:012d}".encode()

    def outcomes_of(self, session: str, space: str = "") -> bytes:
        """Return the prefix of a session's outcomes, of all spaces or of one."""
        return self.outcomes + f"{session}/{space}{'/' if space else ''}".encode()

    def outcome(self, session: str, space: str, number: int) -> bytes:
        """Return the key of one intent's outcome."""
        return self.outcomes + f"{session}/{space}/{number:012d}".encode()

    def parse_intent(self, key: bytes) -> tuple[str, str, int] | None:
        """Return space, session and number of an intent's key; None if it is not of that form."""
        match = _INTENT.fullmatch(key.removeprefix(self.intents))
        return (match[1].decode(), match[2].decode(), int(match[3])) if match else None

    def parse_outcome(self, key: bytes) -> tuple[str, int] | None:
        """Return space and number of an outcome's key, of whichever session; None if it is not of that form."""
        _, _, rest = key.removeprefix(self.outcomes).partition(b"/")
        space, _, number = rest.partition(b"/")
        if _SPACE.fullmatch(space) and len(number) == 12 and number.isdigit():
            return space.decode(), int(number)
        return None

    def space_of(self, kind: bytes, key: bytes) -> str | None:
        """Return the space that a key below `kind` (`heads`, `holders`, …) names; None if that is no name."""
        name = key.removeprefix(kind).partition(b"/")[0]
        return name.decode() if _SPACE.fullmatch(name) else None


def range_of(prefix: bytes) -> tuple[bytes, bytes]:
    """Return first key and end of all keys below a prefix that ends in a slash."""
    return prefix, end_of(prefix)


def session_of(value: bytes) -> str:
    """Return the session that a holder's or successor's value names; empty where it names none."""
    return value.decode() if _SESSION.fullmatch(value) else ""


def encode_head(value: HeadValue) -> bytes:
    """Return the bytes of a head."""
    return _encode(value)


def decode_head(raw: bytes, where: str) -> HeadValue:
    """Return a head. Raises `OperatorNeeded` where the bytes are none's."""
    try:
        value = _canonical(raw, _HEAD)
        if value.seq < 1 or value.term < 0 or not _COMMIT.fullmatch(value.commit):
            raise msgspec.ValidationError("seq, term or commit out of range")
    except msgspec.MsgspecError as error:
        raise OperatorNeeded(
            f"the published head is not well formed: {error}",
            where,
            "run `coordjournal recover` to publish the right one",
        ) from error
    return value


def encode_node(value: NodeValue) -> bytes:
    """Return the bytes of a session's description."""
    return _encode(value)


def decode_node(raw: bytes) -> NodeValue | None:
    """Return a session's description; None where it is not well formed."""
    try:
        return _canonical(raw, _NODE)
    except msgspec.MsgspecError:
        return None


def encode_intent(appends: Sequence[Append]) -> bytes:
    """Return the bytes of an intent; of one that holds nothing any more, no bytes."""
    if not appends:
        return b""
    return _encode([IntentAppend(a.key, a.actor, a.at, a.events, a.expect) for a in appends])


def decode_intent(raw: bytes) -> list[Append]:
    """Return the appends of an intent, not checked yet. Raises the `Rejected` that says what is wrong with it."""
    if not raw:
        return []
    try:
        items = _canonical(raw, _INTENT_APPENDS)
    except msgspec.MsgspecError as error:
        raise InvalidEvent(f"the intent is not well formed: {error}") from error
    appends = [Append(item.events, item.key, item.actor, item.at, item.expect) for item in items]
    if not 1 <= len(appends) <= MAX_INTENT_APPENDS:
        raise InvalidEvent(f"an intent holds 1 to {MAX_INTENT_APPENDS} appends, not {len(appends)}")
    return appends  # each is checked by the group that judges it, and refused by itself


def outcome_item(key: str, outcome: Receipt | CoordJournalError) -> OutcomeItem:
    """Return what an outcome says of one append. A key that is longer than a key may be is cut."""
    key = key[:_MAX_KEY]
    if isinstance(outcome, Receipt):
        return Accepted(key, outcome.first, outcome.seq, outcome.commit, outcome.term, outcome.duplicate)
    text = str(outcome).encode("utf-8", "replace")[:_MAX_TEXT].decode("utf-8", "ignore")
    return Refusal(key, type(outcome).__name__, text, getattr(outcome, "head_seq", 0))


def encode_outcome(items: Sequence[OutcomeItem]) -> bytes:
    """Return the bytes of an outcome."""
    return _encode(list(items))


def decode_outcome(raw: bytes) -> list[OutcomeItem]:
    """Return what an outcome says, append by append; nothing where it is not well formed."""
    try:
        items = _canonical(raw, _OUTCOME)
    except msgspec.MsgspecError:
        return []
    accepted = [item for item in items if isinstance(item, Accepted)]
    if any(not 1 <= item.first <= item.seq or not _COMMIT.fullmatch(item.commit) for item in accepted):
        return []
    return items


def received(space: str, item: OutcomeItem) -> Receipt | CoordJournalError:
    """Return an outcome as the append's caller gets it."""
    if isinstance(item, Accepted):
        return Receipt(space, item.first, item.seq, item.commit, item.term, item.key, "forwarded", item.duplicate)
    if item.name == "Conflict":
        return errors.Conflict(item.text, item.head_seq)
    kind = getattr(errors, item.name, None)
    if isinstance(kind, type) and issubclass(kind, Rejected):
        return kind(item.text)
    return Undecided(f"the holder answered {item.name}: {item.text}; try the same key again")


def _canonical(raw: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    try:
        value = decoder.decode(raw)
        again = _encode(value)
    except (UnicodeError, RecursionError, OverflowError) as error:  # half a character, too deep, too large a number
        raise msgspec.ValidationError(str(error)) from error
    if again != raw:
        raise msgspec.ValidationError("not in canonical form")
    return value


_encode = msgspec.json.Encoder().encode
_HEAD = msgspec.json.Decoder(HeadValue)
_NODE = msgspec.json.Decoder(NodeValue)
_INTENT_APPENDS = msgspec.json.Decoder(list[IntentAppend])
_OUTCOME = msgspec.json.Decoder(list[OutcomeItem])
