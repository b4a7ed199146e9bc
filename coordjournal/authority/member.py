"""One process's part in one space under etcd: holder now, forwarder then; `intake` has what waits meanwhile.

`step` does the one thing that is due next and says when to call it again. Threads only drive it, so a
test can interleave the steps of several processes, stop one between any two, and wake it later.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from coordjournal.authority.forwarding import Asked, Forwarding, as_own, batch, not_in_the_branch
from coordjournal.authority.intake import Intake
from coordjournal.authority.lane import AppendFuture, Pulse
from coordjournal.authority.node import GRANT, Node, told
from coordjournal.authority.tenure import Parted, Proposal, Tenure, Verdict, campaign
from coordjournal.entry import Append, Head, Receipt
from coordjournal.errors import CoordJournalError, MissingObjects, OperatorNeeded, Unavailable
from coordjournal.etcd import EtcdError, Refused, Unanswered
from coordjournal.store import HeadMoved

_MAX_INBOX: Final = 4096  # outcomes that were told and not looked at; what is dropped is asked for
_MAX_OPEN: Final = 64  # intents; what else gathers stays in the queue
_ASK_SECONDS: Final = 0.5  # how long an outcome is waited for before it is asked for, at first
_MAX_ASK_SECONDS: Final = 4.0
_MAX_PAUSE_SECONDS: Final = 2.0  # between two tries of what fails
_SUCCESSOR_SECONDS: Final = 2.0
_BARRED_SECONDS: Final = 10.0  # where etcd gives no right to hold; each time so much longer, thrice that at most
_BUSY_APPENDS: Final = 100  # fewer are not worth a handoff
_OTHERS_FIRST_SECONDS: Final = 0.5  # whoever hands over leaves the others so much time to come
_FEW: Final = 4  # appends; for so many nobody waits for more
_TAKE: Final = "read heads/ and successors/ and write holders/ below the prefix"
_SERVE: Final = "read intents/ below the prefix"
_PUBLISH: Final = "write heads/, intents/ and outcomes/ below the prefix"
IDLE_SECONDS: Final = 30.0
"""A space that nothing was appended to for so long is let go."""

logger = logging.getLogger(__name__)


class Member:
    """The appends of one space on their way through this process. `step` belongs to one thread at a time.

    `kick` is called when there is something to do; it must not block. `keep` is true where the space is
    to be held though nobody needs it. `first_intent` is the number of the first intent. `intake` is between
    the callers and the steps.
    """

    def __init__(
        self, node: Node, space: str, kick: Callable[[Member], None], keep: bool = False, first_intent: int = 1
    ) -> None:
        self.space = space
        self.published = Pulse()
        self._trouble = ""  # what has kept the last step from succeeding
        self.tenure: Tenure | None = None
        self._coming: Tenure | None = None  # while it is taken over
        self.keep = keep
        self.busy_since: float | None = None  # when the step that is under way began, while a holder has work
        self._node = node
        self._kick = kick
        self._forwarding = Forwarding(node, space, first_intent)
        self.intake = Intake(node, space, self._forwarding, self._publishing, lambda: self._kick(self))
        self._stepping = False
        self._inbox: deque[tuple[int, bytes]] = deque(maxlen=_MAX_INBOX)
        self._proposal: tuple[Proposal, list[Asked]] | None = None
        self._answered = True  # whether the publish of the proposal was
        self._barred = ""  # what etcd refused that a holder needs
        self._barred_times = 0
        self._barred_until = 0.0
        self._needed = keep  # whether to campaign though nothing of our own waits
        self._intents = False  # whether there may be intents to serve
        self._early = False  # whether those from before the election may still wait
        self._successor: str | None = None  # asked to hand over: to a session, or to whoever comes
        self._revoked = False  # the keepalive thread let go of the space
        self._ask_at = 0.0
        self._ask_after = _ASK_SECONDS
        self._not_before = 0.0  # of the next campaign
        self._others_until = 0.0  # it was handed over: the others come first
        self._last_group = 0  # how many own appends were in it
        self._failures = 0
        self._missing_since: float | None = None
        self._used = node.clock()
        self._session = 0  # the create-revision of the session's key under which the space was won
        self._own = 0  # own appends decided since the counts were last looked at

    # What other threads call.

    @property
    def trouble(self) -> str:
        """What keeps appends from being decided, as far as that is known."""
        return self._trouble or self._node.etcd.trouble or self._unserved

    @property
    def _unserved(self) -> str:
        """Why this process waits for another one, if it does, and nobody holds the space."""
        if self.tenure is not None or self._forwarding.holder != "":
            return ""
        nobody = f"nobody holds space {self.space}, and this process"
        if self._node.role == "client":
            return f"{nobody}, whose role is client, may not; start `coordjournal node` on the repository"
        if self._barred:
            return f"{nobody} may not: {self._barred}; {GRANT}, or start `coordjournal node` as one who may"
        return ""

    @property
    def _may_hold(self) -> bool:
        return self._node.role != "client" and self._node.clock() >= self._barred_until

    def submit(self, append: Append) -> Future[Receipt]:
        """Take an append on. Raises `Unavailable` if too many wait, `Closed`."""
        future = AppendFuture(self, append.key)
        self.intake.take_on(append, future)
        return future

    def withdraw(self, future: AppendFuture, seconds: float | None = None) -> bool:
        """Take an append back so that it certainly is not applied; false if that is not certain.

        May wait for etcd for so many seconds, for the future's own `cancel_seconds` unless given.
        """
        return self.intake.withdraw(future, future.cancel_seconds if seconds is None else seconds)

    def _publishing(self) -> list[Asked]:
        return self._proposal[1] if self._proposal is not None else []

    def hint_intents(self) -> None:
        """Note that there may be intents to serve."""
        self._intents = True
        self._kick(self)

    def hint_outcome(self, number: int, raw: bytes) -> None:
        """Note that an outcome was put."""
        self._inbox.append((number, raw))
        self._kick(self)

    def hint_holder(self, session: str | None) -> None:
        """Note that the space is now held by `session`; empty: by nobody; None: that may have changed."""
        self._forwarding.holder = session
        if session and session != self._node.id:
            self._others_until = 0.0
        if session != self._node.id or self.tenure is None:
            self._ask_at = 0.0
            self._kick(self)

    def hint_successor(self, session: str) -> None:
        """Note that somebody asks that the space be handed over; to nobody by name if empty."""
        if self.tenure is not None:
            if session != self._node.id:
                self._successor = session  # of none, as an operator's `-` is, whoever needs it comes next
        elif session == self._node.id:
            self._needed = True
            self._not_before = self._others_until = 0.0
            self._forwarding.holder = None
        self._kick(self)

    def need(self) -> None:
        """Campaign for the space though nothing of our own waits: intents do, or it is to be kept."""
        self._needed = True
        self._forwarding.holder = None
        self._kick(self)

    def revoke(self) -> None:
        """Let go of the space from outside, though the worker may be stuck: whatever it publishes will fail."""
        tenure = self.tenure or self._coming
        if tenure is not None:
            self._revoked = True
            tenure.let_go()

    @property
    def held_elsewhere(self) -> bool:
        """Whether another session holds the space, as far as is known: it has the intents that come."""
        return self._forwarding.holder not in (None, "", self._node.id)

    @property
    def holds(self) -> bool:
        """Whether the space is held, or being taken over."""
        return self.tenure is not None or self._coming is not None

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way."""
        intake = self.intake
        forwarded = self._forwarding.open or self._forwarding.gone or self._forwarding.emptied
        return not (forwarded or intake.judging or self._proposal or intake.waiting or intake.to_take_back)

    @property
    def spare(self) -> bool:
        """Whether nothing is lost with it: it has nothing to do, and nothing to remember but `next_intent`."""
        lasting = self.holds or self.keep or self.intake.doubts
        return self.idle and not (lasting or self._needed or self._inbox or self._stepping)

    @property
    def next_intent(self) -> int:
        """The number that the next intent gets."""
        return self._forwarding.next

    @property
    def unused_for(self) -> float:
        """For how many seconds nothing was appended through this process."""
        return self._node.clock() - self._used

    def wait_idle(self, seconds: float) -> bool:
        """Wait until nothing is on its way; whether that is so."""
        return self.intake.wait_for(lambda: self.idle, seconds)

    # What the worker calls.

    def step(self) -> float | None:
        """Do what is due next; return after how many seconds to call again, None if not before a kick."""
        self._stepping = True
        wanted = self._intents or self._needed or self.keep
        self.busy_since = self._node.clock() if wanted or not self.idle else None
        try:
            delay = self._step()
            if delay == 0.0:
                self._failures = 0
            if not self._failures:
                self._trouble = ""
        except Unanswered as error:
            self._trouble = str(error)
            logger.info("space %s: etcd does not answer: %s", self.space, error)
            delay = self._pause()
        except Refused as refusal:
            delay = self._refused(refusal)
        except CoordJournalError as error:
            again, self._trouble = self._trouble == str(error), str(error)
            logger.log(logging.DEBUG if again else logging.WARNING, "space %s: %s", self.space, error)
            if isinstance(error, OperatorNeeded):
                self._needed = False
                self.intake.fail(error)
            delay = self._pause()
        except Exception as error:
            logger.exception("space %s: a step failed", self.space)
            self.intake.fail(Unavailable(f"nothing can be appended to space {self.space}: {error!r}"))
            delay = self._pause()
        self.busy_since, self._stepping = None, False
        self.intake.stepped()
        return delay

    def _pause(self) -> float:
        self._failures += 1
        pause: float = min(_MAX_PAUSE_SECONDS, 0.02 * 2 ** min(self._failures, 10))
        return pause

    def _step(self) -> float | None:
        node, forwarding = self._node, self._forwarding
        while self._inbox:
            forwarding.decided(*self._inbox.popleft())
        self.intake.requeue_gone()
        if self._proposal is not None and not self._answered:
            return self._conclude(self.tenure.resolve(self._proposal[0]) if self.tenure is not None else "doubtful")
        if self._proposal is not None and self.tenure is not None:
            return self._publish(self.tenure)
        if self.idle and self.tenure is None and (self.intake.closed or not (self._needed or self.keep)):
            return None
        node.identify()
        node.ensure_session()
        if self.tenure is not None and self._session != node.session.created:
            self._step_down("its session was lost")
        if self._revoked and self.tenure is not None:
            self._step_down("it made no progress")
        if (sent := forwarding.unanswered()) is not None:
            forwarding.settle(sent)
            return 0.0
        if self.intake.to_take_back and self.intake.take_back_next():
            return 0.0
        if forwarding.emptied:
            forwarding.sweep()
            return 0.0
        if self.tenure is not None:
            return self._hold(self.tenure)
        return self._forward()

    def _hold(self, tenure: Tenure) -> float | None:
        if self._successor is not None or (self.intake.closed and self.idle and not self._intents):
            return self._hand_over(tenure)
        if self.intake.waiting or self._intents:
            return self._serve(tenure)
        if tenure.lags:
            try:
                tenure.advance(tenure.head)
            except Parted as error:
                self._step_down(str(error))
                self._end(tenure)
                raise
            return 1.0
        if self.unused_for > IDLE_SECONDS and not self.keep:
            logger.info("space %s: let go, nothing was appended for a while", self.space)
            self._end(tenure)
            return 0.0
        return None

    def _serve(self, tenure: Tenure) -> float:
        self._used = self._node.clock()
        intents = []
        if self._intents:
            self._intents = False
            try:
                intents = tenure.intents()
            except EtcdError:
                self._intents = True
                raise
            self._early = any(intent.kv.create_revision < tenure.first_revision for intent in intents)
            self._intents = self._intents or bool(intents)  # there may be more
        if self._last_group > _FEW:
            self.intake.await_more()
        own = [] if self._early else self.intake.gather()
        self._last_group = len(own)
        if not (intents or own):
            return 0.0
        left = {asked.append.key: asked.after for asked in own if asked.after is not None}
        try:
            proposal = tenure.propose(intents, [asked.append for asked in own], left)
        except HeadMoved:
            self.intake.requeue(own)
            self._step_down("the log has moved on without it")
            return 0.0
        except (Unavailable, OperatorNeeded) as error:
            self.intake.tell_all(own, error)
            self._step_down(f"it cannot write: {error}")
            self._end(tenure)
            self._not_before = self._node.clock() + self._pause()
            raise
        except BaseException:
            self.intake.requeue(own)
            raise
        self._proposal, self._answered = (proposal, own), False
        return self._publish(tenure)

    def _publish(self, tenure: Tenure) -> float:
        assert self._proposal is not None
        self._answered = False
        try:
            verdict = tenure.publish(self._proposal[0])
        except Refused as refusal:
            return self._unpublished(refusal)
        return self._conclude(verdict)

    def _unpublished(self, error: EtcdError) -> float:
        """Etcd refused the publish for certain: its own appends are answered, the intents wait."""
        assert self._proposal is not None
        (proposal, own), self._proposal = self._proposal, None
        if proposal.intents:
            self._intents = True
        reason = error.reason if isinstance(error, Refused) else ""
        if reason == "lease not found":  # that of the outcomes
            self._node.forget_outcome_lease()
            self.intake.requeue(own)
            return 0.0
        logger.warning("space %s: nothing can be published: %s", self.space, error)
        if isinstance(error, Refused) and reason == "permission denied":
            self.intake.tell_all(own, told(error, f"nothing can be appended to space {self.space}, to {_PUBLISH}"))
            self._bar(error, _PUBLISH)
        else:
            self.intake.tell_all(own, told(error, f"nothing can be appended to space {self.space}"))
        return self._pause()

    def _bar(self, refusal: Refused, step: str) -> None:
        """Leave the space to others for a while: etcd gives this process no right to a step that holders take."""
        again, self._barred = bool(self._barred), f"{refusal} (asked to {step})"
        self._barred_times += 1
        pause = _BARRED_SECONDS * min(self._barred_times, 3)
        self._barred_until = self._node.clock() + pause
        level = logging.DEBUG if again else logging.INFO
        if self.keep or self._node.role == "holder":
            level = logging.ERROR
        words = "space %s: this process may not hold it, and tries again in %.0f s: %s"
        logger.log(level, words, self.space, pause, self._barred)
        if (tenure := self.tenure) is not None:
            self._step_down(f"etcd gives it no right to {step}")
            self._end(tenure)

    def _conclude(self, verdict: Verdict) -> float:
        assert self._proposal is not None
        proposal, own = self._proposal
        self._answered = True
        if verdict == "again":
            if own and proposal.full is not None:
                return self._unpublished(proposal.full)
            return self._pause() if proposal.full is not None else 0.0
        tenure = self.tenure
        if verdict == "published":
            assert tenure is not None
            try:
                tenure.accept(proposal)
            except Parted as parting:
                return self._part(tenure, parting)
            self._barred, self._barred_times = "", 0
            self._own += len(own)
            self._deliver(proposal, own)
            self._proposal = None
            self.intake.done()
            self._node.replica(self.space).settle()
            self.published.beat()
            return 0.0
        if verdict == "doubtful":
            for asked in own:
                asked.doubtful = True
        self._intents = self._intents or bool(proposal.intents)
        self.intake.requeue(own)
        self._proposal = None
        if verdict != "changed":
            self._step_down("another process holds it, or etcd lost what it knew")
        return 0.0

    def _part(self, tenure: Tenure, parting: Parted) -> float:
        """Acknowledge nothing of what was published, and let go: the branch went on from elsewhere meanwhile."""
        assert self._proposal is not None
        (_, own), self._proposal = self._proposal, None
        self.intake.done()
        logger.error("space %s: what was published is not acknowledged: %s", self.space, parting)
        for asked in own:
            asked.doubtful = True
            asked.tell(not_in_the_branch(parting))
        self._step_down(str(parting))
        self._end(tenure)
        return self._pause()

    def _deliver(self, proposal: Proposal, own: Sequence[Asked]) -> None:
        for intent, raw in zip(proposal.intents, proposal.forwarded, strict=True):
            if intent.session == self._node.id:
                self._forwarding.decided(intent.number, raw)
        _, outcomes = proposal.outcomes
        for asked, outcome in zip(own, outcomes, strict=True):
            asked.tell(as_own(asked, outcome))

    def _forward(self) -> float | None:
        forwarding, now = self._forwarding, self._node.clock()
        wanted = bool(self.intake.waiting or forwarding.open or self._needed or self.keep)
        mine = forwarding.holder == self._node.id
        begin = max(self._not_before, self._others_until)
        if self._may_hold and wanted and now >= begin and (mine or not forwarding.holder):
            return self._campaign()
        if forwarding.open and now >= self._ask_at:
            forwarding.ask()
            self._ask_after = min(2 * self._ask_after, _MAX_ASK_SECONDS)
            self._ask_at = self._node.clock() + self._ask_after
            self.intake.requeue_gone()
            return 0.0
        room = len(forwarding.open) < _MAX_OPEN
        presence = self._node.presence()  # before anything is taken from the queue, since it may fail
        own = self.intake.gather(batch) if room and (forwarding.holder or not self._may_hold) else []
        if own:
            self._used = now
            self._ask_after = _ASK_SECONDS
            self._ask_at = now + self._ask_after
            try:
                if not forwarding.send(own, presence):
                    self._node.doubt_session()
            except Refused as refusal:
                self.intake.tell_all(own, told(refusal, f"nothing can be appended to space {self.space}"))
                raise
            finally:
                self.intake.done()
            return 0.0
        if self._node.role == "client":
            self._needed = False
        due = [self._ask_at] if forwarding.open else []
        if self._node.role != "client" and wanted and not forwarding.holder:
            due.append(max(begin, self._barred_until))
        return max(0.0, min(due) - now) if due else (None if self.idle else _ASK_SECONDS)

    def _campaign(self) -> float:
        try:
            election = campaign(self._node, self.space)
        except Refused as refusal:
            if refusal.reason == "permission denied":
                self._bar(refusal, _TAKE)
                return 0.0
            if refusal.reason == "lease not found":
                self._node.lose_session()
                return 0.0
            raise
        self._forwarding.holder = election.holder
        self._forwarding.note_head(election.head)
        if not election.created:
            if not election.holder:  # a successor is waited for, or the session is gone
                self._not_before = self._node.clock() + _SUCCESSOR_SECONDS / 20
                self._node.doubt_session()
            else:
                self._missing_since = None
            self._needed = False
            return 0.0
        self._revoked = False
        self._coming = tenure = Tenure(self._node, self.space, election)
        try:
            tenure.take_over()
        except Exception as error:  # noqa: BLE001  # whatever it is, the space is not to be kept unserved
            overtaken = isinstance(error, OperatorNeeded) and not tenure.stands()
            self._end(tenure)
            self._forwarding.holder = ""
            pause = self._pause()
            self._not_before = self._node.clock() + pause
            if overtaken:
                logger.info("space %s: another one held it before it was taken over", self.space)
            else:
                self._cannot_take_over(error, tenure.head)
            return pause
        finally:
            self._coming = None
        self._session = self._node.session.created
        self._missing_since = None
        self._needed = False
        self._successor = None
        self._intents = self._early = True
        self._used = self._node.clock()
        self.tenure = tenure
        logger.info("space %s: held from entry %d on, term %d", self.space, tenure.head.seq, tenure.term)
        return 0.0

    def _cannot_take_over(self, error: Exception, head: Head) -> None:
        now = self._node.clock()
        if isinstance(error, MissingObjects):  # a directory cache may hide them for a while
            if self._node.store.has(self.space, head):
                return  # it did until now
            self._missing_since = now if self._missing_since is None else self._missing_since
            if now - self._missing_since < self._node.store.patience:
                logger.info("space %s: %s; looking again", self.space, error)
                return
        logger.warning("space %s cannot be taken over: %s", self.space, error)
        self._needed = False
        if isinstance(error, OperatorNeeded):
            self.intake.fail(error)
        elif not isinstance(error, CoordJournalError):
            logger.exception("space %s: the takeover failed", self.space)
            self.intake.fail(Unavailable(f"space {self.space} cannot be taken over: {error!r}"))

    def _refused(self, refusal: Refused) -> float:
        logger.warning("space %s: etcd refuses: %s", self.space, refusal)
        if refusal.reason == "lease not found":
            self._node.lose_session()
            return 0.0
        if refusal.reason == "permission denied" and self.tenure is not None:
            self._bar(refusal, _SERVE)
        self.intake.fail(told(refusal, f"nothing can be appended to space {self.space}"))
        return self._pause()

    def _hand_over(self, tenure: Tenure) -> float:
        successor, self._successor = self._successor, None
        logger.info("space %s: handed over to %s", self.space, successor or "whoever needs it")
        self._step_down("it is handed over")
        self._others_until = self._node.clock() + (_SUCCESSOR_SECONDS if successor else _OTHERS_FIRST_SECONDS)
        tenure.let_go(successor or "")
        self._forwarding.holder = ""
        return 0.0

    def _step_down(self, reason: str) -> None:
        if self.tenure is not None:
            logger.info("space %s: no longer held: %s", self.space, reason)
        self.tenure = None
        self._revoked = False
        self._forwarding.holder = None

    def _end(self, tenure: Tenure) -> None:
        """Delete the holder's key as well as may be; what is left of it is found by a rescan."""
        self.tenure = None
        try:
            tenure.let_go()
        except EtcdError as error:
            logger.info("space %s: the holder's key is not deleted yet: %s", self.space, error)
        self._forwarding.holder = None

    def busiest(self) -> str:
        """Return the session that all of the late work was for, empty if there is none; forget the counts."""
        tenure, own = self.tenure, self._own
        self._own = 0
        if tenure is None:
            return ""
        served, tenure.served = tenure.served, {}
        total = sum(served.values())
        if own or total < _BUSY_APPENDS:
            return ""
        session = max(served, key=lambda name: served[name])
        return session if session != self._node.id and 2 * served[session] > total else ""
