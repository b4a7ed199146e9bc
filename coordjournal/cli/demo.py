"""`demo`: three processes share a journal, one is killed in the middle, and nothing is lost."""

from __future__ import annotations

import os
import queue
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from coordjournal.cli.options import Command, Settings
from coordjournal.cli.output import Output, note
from coordjournal.cli.story import ACTORS, ASKED_NAME, OPENING, SPACE, VICTIM
from coordjournal.cli.story_process import PATIENCE_SECONDS, Answer, Worker
from coordjournal.cli.text import count, plain
from coordjournal.entry import Entry
from coordjournal.errors import Unavailable

_SHOWN_AFTER: Final = 8  # the killing


@click.command(cls=Command)
@click.pass_context
def demo(ctx: click.Context) -> int:
    """Show three processes that share a journal, one killed.

    It is killed in the middle, the others go on. Then the log, the fold, a name resolved, and the same
    log read with plain git. For people: -o is not heeded.
    """
    settings = replace(ctx.ensure_object(Settings), output="table", etcd="")  # whatever the environment says
    directory = Path(tempfile.mkdtemp(prefix="coordjournal-demo-"))
    try:
        faults = _play(ctx, settings, directory)
    except BaseException:  # whoever ended it was not told of the directory yet
        shutil.rmtree(directory, ignore_errors=True)
        raise
    if faults:
        note("the demonstration failed", label="error:")
    return 1 if faults else 0


def _play(ctx: click.Context, settings: Settings, directory: Path) -> list[str]:
    """Show it all and return what went wrong."""
    from coordjournal import maintenance

    out = settings.out
    repo = directory / "federation.git"
    settings.given_repo = str(repo)
    maintenance.init(repo)  # says at once where a directory will not do
    _title(out, "Three processes share a journal; one is killed in the middle")
    with _workers(repo) as (workers, answers):
        _watch(out, workers, answers)
    _title(out, "Nothing acknowledged is lost, doubled or moved")
    faults = _check(settings, workers)
    for fault in faults:
        out.line(out.style(f"✗ {plain(fault)}", "red", bold=True))
    _title(out, "The log, the fold, and where a name leads")
    out.line(out.style(f"$ export COORDJOURNAL_REPO={shlex.quote(str(repo))}", bold=True))
    for words in (["log", SPACE, "-n", "8"], ["state", SPACE, "--upto", str(OPENING)], ["resolve", SPACE, ASKED_NAME]):
        _run(ctx, settings, words)
    _title(out, "The same log, read with plain git")
    faults += _git(out, repo)
    out.line()
    out.line(f"It all lies in {plain(str(directory))}: look around, and delete it when you like.")
    out.flush()
    return faults


def _title(out: Output, text: str) -> None:
    out.line()
    out.line(out.style(f"━━ {text}", "blue", bold=True))
    out.line()
    out.flush()


@contextmanager
def _workers(repo: Path) -> Iterator[tuple[list[Worker], queue.SimpleQueue[Answer]]]:
    """Run the three processes; none of them outlives the block."""
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    opened = threading.Barrier(len(ACTORS))
    workers: list[Worker] = []
    try:
        for actor in ACTORS:
            workers.append(Worker(actor, repo, answers, opened))  # noqa: PERF401  # what was started is ended, come what may
        for worker in workers:
            worker.start()
        yield workers, answers
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()


def _watch(out: Output, workers: Sequence[Worker], answers: queue.SimpleQueue[Answer]) -> None:
    """Show what is decided as it comes, kill the victim, and wait for the others."""
    running, shown, silent = set(workers), 0, 0
    room = OPENING + 1 + len(ACTORS)
    while running:
        try:
            worker, document = answers.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            raise Unavailable(f"a process gave no answer within {PATIENCE_SECONDS:g} s") from None
        if document is None:
            running.discard(worker)
            if worker.actor is VICTIM:
                silent = _skipped(out, silent)
                under_way = count(len(worker.unanswered), "append")
                words = f"{VICTIM.name} is killed (SIGKILL) with {under_way} under way; the others go on"
                out.line(out.style(words, "red", bold=True))
                room = shown + _SHOWN_AFTER
            continue
        words = worker.note(document)
        if shown < room:
            silent = _skipped(out, silent)
            out.line(f"{out.style(worker.actor.name.ljust(6), worker.actor.color)}{plain(words)}")
            out.flush()
            shown += 1
        else:
            silent += 1
    _skipped(out, silent)


def _skipped(out: Output, silent: int) -> int:
    if silent:
        out.line(out.style(f"      … {silent} more", dim=True))
    return 0


def _check(settings: Settings, workers: Sequence[Worker]) -> list[str]:
    """Hold what the processes were told against the log; say what was found and return the faults."""
    out = settings.out
    with settings.open_log() as log:
        entries = list(log.events(SPACE))
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.key, []).append(entry)
    faults = []
    for worker in workers:
        for key, receipt in worker.acknowledged.items():
            places = [(entry.seq, entry.commit) for entry in found.get(key, ())]
            if places != [(receipt["seq"], receipt["commit"])]:
                faults.append(f"{key} was acknowledged as entry {receipt['seq']}, but the log has it at {places}")
        faults += [f"{key} was refused, but is in the log" for key in worker.refused if key in found]
        faults += [f"{key} is in the log twice" for key in worker.asked if len(found.get(key, ())) > 1]
    refusals = [code for worker in workers for code in worker.refused.values()]
    if refusals != ["alias_cycle"]:
        faults.append(f"the circle was to be refused, and nothing else, but this was: {refusals}")
    faults += [f"entry {entry.seq} stands at place {seq}" for seq, entry in enumerate(entries, 1) if entry.seq != seq]
    if workers[ACTORS.index(VICTIM)].process.returncode != -signal.SIGKILL:
        faults.append(f"{VICTIM.name} was not killed")
    if not faults:
        _tell(out, workers, found)
    return faults


def _tell(out: Output, workers: Sequence[Worker], found: dict[str, list[Entry]]) -> None:
    tick = out.style("✓", "green", bold=True)
    for worker in workers:
        name = out.style(worker.actor.name.ljust(6), worker.actor.color)
        told = f"{len(worker.acknowledged)} acknowledged, each in the log exactly once, where its receipt says"
        if worker.refused:
            told += f"; {count(len(worker.refused), 'refusal')}, not in the log"
        if worker.actor is VICTIM:
            silent = worker.unanswered
            landed = sum(key in found for key in silent)
            told += f"; of {len(silent)} without an answer {landed} are in the log, none twice"
        out.line(f"{tick} {name}{told}")
    out.line(f"{tick} {count(sum(map(len, found.values())), 'entry', 'entries')}, no gap")


def _run(ctx: click.Context, settings: Settings, words: list[str]) -> None:
    """Run a command of this program and show it."""
    _prompt(settings.out, ["coordjournal", *words])
    root = ctx.find_root().command
    with root.make_context("coordjournal", list(words), obj=settings) as inner:
        root.invoke(inner)
    settings.out.line()
    settings.out.flush()


def _prompt(out: Output, words: Sequence[str]) -> None:
    out.line(out.style(f"$ {shlex.join(words)}", bold=True))


def _git(out: Output, repo: Path) -> list[str]:
    """Read the log with plain git; return what git finds wrong."""
    program = shutil.which("git")
    if program is None:
        out.line("git is not installed here; coordjournal does without")
        return []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    faults = []
    _prompt(out, ["cd", str(repo)])
    for words in (
        ["log", "-5", "--format=%h %an: %s", SPACE],
        ["show", f"{SPACE}:events/00/00/00/01.jsonl"],
        ["fsck", "--strict", "--no-dangling"],
    ):
        _prompt(out, ["git", *words])
        done = subprocess.run(  # noqa: S603  # the git of the PATH, with fixed arguments
            [program, "--git-dir", str(repo), "--no-pager", *words],
            capture_output=True,
            env=environment,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        out.write(done.stdout)
        if done.returncode:
            faults.append(f"git {words[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
        elif words[0] == "fsck":
            out.line("nothing is wrong")
        out.line()
    return faults
