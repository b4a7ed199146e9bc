"""Histories of what processes did with a journal, and the rules that each must keep.

A history is a list of events (`events`): every call and its return, every revision of etcd, the log as it
ended. `Recorder` and `RecordedLog` note the calls, `revisions` what etcd did, `logged` the log; several
processes write one file each (`EventFile`), and `read_events` makes one history of them. `check` is pure: it
returns what is wrong, each finding under the name of its rule.

==============  ========================================================================================
`chain`         each published head descends from the one before; seqs are contiguous; the log ends at the last
`fencing`       each publish was its holder's, in that holder's term, on the head of that moment; along the log
                terms never fall; nobody's key is overwritten
`durability`    each acknowledged append is in the log, where its receipt says, and was published by then
`exactly once`  acknowledged: that very append, once; failed: none; unknown: none or one; each outcome in etcd
                answers its intent, and says what the log has
`real time`     what was appended before another was asked for is before it; so are one caller's calls
`refusals`      each is right at some head between call and return, those in outcomes where they were published;
                nothing is accepted that does not fit
`reads`         each is a prefix that was published by then, as new as its consistency promises
`branch`        it shows heads that were published by then, and appends that were forwarded; it never goes back,
                is never ahead of etcd, and holds what was acknowledged
`drain`         no intent waits after quiet, each had one outcome, every caller was told something
`storage`       somebody has examined it all and found nothing wrong; the state that was read is the fold of the
                log; nobody who met no damage was told of any
`liveness`      an append succeeds within the stated bound after all is healed, in each space, and for each
                process that asks for one and is left in peace
==============  ========================================================================================

What excuses something must be on record, at that time and for that process (`Fault`, `Era`); each rule says
what does. "By then" is checked where the history tells: of revisions that are `exact`, else of what was
`Sent`. An operator's head, and intents without an outcome, need an operator at work; where etcd was set back,
its readers need not see what it has forgotten, a failure of that moment says less, and what it published and the
branch never showed may be lost.

The judgement of single appends and the fold are the journal's own (`coordjournal.state`), which has tests of
its own against a naive one; nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from coordjournal.testing.histories import appends, ends, publishes, reads
from coordjournal.testing.histories.events import (
    AppendInvoked,
    AppendReturned,
    BranchSeen,
    Ended,
    Era,
    Event,
    Examined,
    Fault,
    FinalHead,
    Healed,
    Logged,
    ReadInvoked,
    ReadReturned,
    Revision,
    Sent,
    logged,
)
from coordjournal.testing.histories.findings import RULES, Finding, Rule
from coordjournal.testing.histories.history import History
from coordjournal.testing.histories.recording import (
    EventFile,
    RecordedLog,
    Recorder,
    entries_digest,
    outcome_of,
    read_events,
    revisions,
    state_digest,
    write_events,
)

__all__ = [
    "RULES",
    "AppendInvoked",
    "AppendReturned",
    "BranchSeen",
    "Ended",
    "Era",
    "Event",
    "EventFile",
    "Examined",
    "Fault",
    "FinalHead",
    "Finding",
    "Healed",
    "History",
    "Logged",
    "ReadInvoked",
    "ReadReturned",
    "RecordedLog",
    "Recorder",
    "Revision",
    "Rule",
    "Sent",
    "check",
    "entries_digest",
    "logged",
    "outcome_of",
    "read_events",
    "revisions",
    "state_digest",
    "write_events",
]

_RULES: Final[dict[Rule, Callable[[History], Iterator[Finding]]]] = {
    "chain": publishes.chain,
    "fencing": publishes.fencing,
    "durability": appends.durability,
    "exactly once": appends.exactly_once,
    "real time": appends.real_time,
    "refusals": reads.refusals,
    "reads": reads.reads,
    "branch": publishes.branch,
    "drain": ends.drain,
    "storage": ends.storage,
    "liveness": ends.liveness,
}


def check(events: Iterable[Event], rules: Collection[Rule] = RULES) -> list[Finding]:
    """Return everything in a history that breaks one of `rules`; nothing if it is a good one."""
    history = History(events)
    return [finding for rule in RULES if rule in rules for finding in _RULES[rule](history)]
