"""docs/cli.md and the command line say the same: commands, options, and what they print."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from coordjournal.cli import main
from coordjournal.cli.options import GLOBAL_OPTIONS
from coordjournal.cli.program import root
from coordjournal.testing.etcd import EtcdServer
from tests.cli import Shell, streams
from tests.support import CHECKOUT

PAGE = CHECKOUT / "docs" / "cli.md"
ANY = "…"
DIFFERS = {"packs_before", "bytes_before", "bytes_after", "objects", "pid"}  # numbers that differ from run to run
PRINTS_NO_JSON = {"coordjournal demo", "coordjournal completion [SHELL]", "coordjournal import"}


class Section(NamedTuple):
    """What stands under a heading, up to the next one."""

    title: str
    text: str

    @property
    def options(self) -> set[str]:
        """The names of options in the first column of its tables."""
        rows = re.findall(r"^\| (`-.*?) \| ", self.text, re.MULTILINE)
        spelled = [code for row in rows for code in re.findall(r"`([^`]*)`", row)]
        return {code.split()[0] for code in spelled}

    @property
    def examples(self) -> list[Example]:
        """The commands in its console blocks, in order."""
        found = []
        for block in re.findall(r"^```console\n(.*?)^```", self.text, re.MULTILINE | re.DOTALL):
            for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = chunk.partition("\n")
                found.append(Example(self.title, command, output))
        return found


class Example(NamedTuple):
    """A command and what it prints, as documented."""

    section: str
    command: str
    output: str


def sections() -> list[Section]:
    text = PAGE.read_text()
    parts = re.split(r"^#{2,3} (.*)\n", text, flags=re.MULTILINE)
    return [Section("", parts[0])] + [
        Section(title.strip("`"), body) for title, body in zip(parts[1::2], parts[2::2], strict=True)
    ]


def commands(command: click.Command = root, path: str = "coordjournal") -> Iterator[tuple[str, click.Command]]:
    """Yield every command with the way it is written: names, and arguments in capitals."""
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    for argument in arguments:
        assert argument.name is not None
        name = argument.name.upper() if argument.required else f"[{argument.name.upper()}]"
        path += f" {argument.metavar or name}"
    if command is not root:
        yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


COMMANDS = dict(commands())
SECTIONS = {section.title: section for section in sections()}


def test_every_command_has_its_section_and_no_other() -> None:
    documented = {title for title in SECTIONS if title.startswith("coordjournal")}
    assert documented == set(COMMANDS)


def option_names(params: list[click.Parameter]) -> set[str]:
    return {
        name for param in params if isinstance(param, click.Option) for name in (*param.opts, *param.secondary_opts)
    }


@pytest.mark.parametrize("title", COMMANDS)
def test_every_option_is_documented_and_no_other(title: str) -> None:
    assert SECTIONS[title].options == option_names(COMMANDS[title].params)


def test_the_global_options_are_documented() -> None:
    assert SECTIONS["Global options"].options == {*option_names(list(GLOBAL_OPTIONS)), "-h", "--help"}


@pytest.mark.parametrize("title", [title for title in COMMANDS if "append SPACE " not in title])
def test_every_command_that_prints_json_shows_it(title: str) -> None:
    shown = any(
        line.startswith(("{", "[")) for example in SECTIONS[title].examples for line in example.output.split("\n")
    )
    assert shown != (title in PRINTS_NO_JSON)


EXAMPLES = [example for section in sections() for example in section.examples]
NAMES_ETCD = next(number for number, example in enumerate(EXAMPLES) if "COORDJOURNAL_ETCD=" in example.command)


class Transcript:
    """Runs the examples in their order; each is run once, when it or a later one is asked for.

    From the one that names an etcd on they have a real one, of their own.
    """

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self._shell = Shell(directory, monkeypatch)
        self._directory = directory
        self._monkeypatch = monkeypatch
        self._stack = stack
        self._printed: list[str] = []
        self._job: subprocess.Popen[bytes] | None = None

    def printed(self, number: int) -> str:
        self._monkeypatch.chdir(self._directory)
        while len(self._printed) <= number:
            example = EXAMPLES[len(self._printed)]
            self._printed.append(self._run(example))
        return self._printed[number]

    def _run(self, example: Example) -> str:
        words = shlex.split(example.command, posix=True)
        match words[0]:
            case "export":
                name, value = words[1].split("=", 1)
                if name == "COORDJOURNAL_ETCD":
                    value = self._stack.enter_context(EtcdServer(self._directory / "etcd")).endpoint
                self._monkeypatch.setenv(name, value)
                return ""
            case "kill":
                return self._end_job()
            case "cat":
                Path(words[1]).write_text(example.output)
                return example.output
            case "git":
                return subprocess.run(words, capture_output=True, text=True, check=True).stdout
        assert words.pop(0) == "coordjournal"
        if words[-1] == "&":
            return self._begin_job(words[:-1])
        tell_code = words[-2:] == ["echo", "$?"]
        if tell_code:
            del words[-2:]
            words[-1] = words[-1].removesuffix(";")
        stdin = b""
        if words[-2:-1] == ["<"]:
            stdin = Path(words[-1]).read_bytes()
            del words[-2:]
        printed = io.BytesIO()
        with streams(io.BytesIO(stdin), printed, printed):
            code = main(words)
        unexpected = "" if tell_code or not code else f"[the exit code is {code}]\n"
        return printed.getvalue().decode() + (f"{code}\n" if tell_code else unexpected)

    def _begin_job(self, words: list[str]) -> str:
        """Start a node, and wait until it holds what it was told to."""
        self._job = job = self._stack.enter_context(self._shell.start(*words))
        self._stack.callback(job.kill)
        assert job.stderr is not None
        said = job.stderr.readline().decode()
        deadline = time.monotonic() + 20
        while not all(space["holder"] for space in self._shell.ok("status", words[1], "-o", "json").json):
            assert time.monotonic() < deadline, "the node does not hold its space"
            time.sleep(0.02)
        return said

    def _end_job(self) -> str:
        job, self._job = self._job, None
        assert job is not None
        job.terminate()
        out, err = job.communicate(timeout=20)
        assert job.returncode == 0
        return (out + err).decode()


@pytest.fixture(scope="module")
def transcript(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transcript]:
    with pytest.MonkeyPatch.context() as monkeypatch, ExitStack() as stack:
        yield Transcript(tmp_path_factory.mktemp("transcript"), monkeypatch, stack)


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=[example.command for example in EXAMPLES])
def test_an_example_prints_what_is_documented(
    number: int, transcript: Transcript, request: pytest.FixtureRequest
) -> None:
    if number >= NAMES_ETCD:
        request.getfixturevalue("coordjournal_etcd_binary")  # else it is skipped, and says why
    example = EXAMPLES[number]
    documented, printed = example.output.splitlines(), transcript.printed(number).splitlines()
    assert len(documented) == len(printed), "\n".join(printed)
    assert all(map(line_matches, documented, printed)), "\n".join(printed)


def line_matches(documented: str, printed: str) -> bool:
    """Whether a line is as documented: JSON by its fields, their order and values, others by their text."""
    if documented.startswith(("{", "[")) and printed.startswith(("{", "[")):
        return value_matches(parsed(documented), parsed(printed))
    return re.fullmatch(".+?".join(map(re.escape, documented.split(ANY))), printed) is not None


class Fields(list[tuple[str, Any]]):
    """The fields of a JSON object in their order."""


def parsed(line: str) -> Any:
    return json.loads(line, object_pairs_hook=Fields)


def value_matches(documented: Any, printed: Any) -> bool:
    if documented == ANY:
        return isinstance(printed, str) and printed != ""
    if isinstance(documented, list) and isinstance(printed, list):
        return (
            len(documented) == len(printed)
            and type(documented) is type(printed)
            and all(map(value_matches, documented, printed))
        )
    if isinstance(documented, tuple):
        (name, shown), (found, value) = documented, printed
        return bool(name == found) and (value_matches(shown, value) or (name in DIFFERS and type(value) is int))
    if isinstance(documented, str) and ANY in documented:
        return isinstance(printed, str) and line_matches(documented, printed)
    return type(documented) is type(printed) and bool(documented == printed)
