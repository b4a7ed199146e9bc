"""The rooms of the house know only what lies below them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CHECKOUT

PACKAGE = CHECKOUT / "coordjournal"

OPERATORS = ["maintenance", "keyspace", "inspection", "premises", "heads", "adoption", "recovery", "overview", "doctor"]

# Lowest first; a module may import from lower layers, and from its own.
LAYERS = [
    ["errors"],
    ["events"],
    ["entry"],
    ["persistent"],
    ["weight"],
    ["pointers", "groups"],
    ["state"],
    ["facts"],
    ["store", "retry", "etcd"],
    ["cache"],
    ["replica"],
    ["replicas"],
    ["commit"],
    ["authority"],
    ["log"],
    ["replay"],
    ["space", "importers", "verification"],
    OPERATORS,
    ["cli"],
    ["testing"],  # for tests, ours and others'
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name not in ("__init__", "__main__"):
            yield name, path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("coordjournal.") for name in names if name.startswith("coordjournal."))


@pytest.mark.parametrize(("name", "path"), list(modules()))
def test_a_module_imports_only_from_its_own_room_or_lower_ones(name: str, path: Path) -> None:
    room = name.split(".")[0]
    for imported in imports(path):
        other = imported.split(".")[0]
        if other in LEVEL:  # else a name of the package itself, which only the command line may use
            assert other == room or LEVEL[other] <= LEVEL[room], f"{name} imports {imported}"
        else:
            assert room == "cli", f"{name} imports {imported} through the package"


def test_the_store_knows_neither_the_state_nor_the_authority() -> None:
    for name, path in modules():
        if name.split(".")[0] in ("store", "retry"):
            known = {imported.split(".")[0] for imported in imports(path)}
            allowed = {"store", "retry", "errors", "entry", "events"} | ({"etcd"} if name == "retry" else set())
            assert known <= allowed, name


def test_etcd_knows_nothing_of_the_journal_and_is_known_where_the_authority_is_chosen() -> None:
    for name, path in modules():
        room = name.split(".")[0]
        known = {imported.split(".")[0] for imported in imports(path)}
        if room == "etcd":
            assert known <= {"etcd", "retry"}, name
        elif "etcd" in known:
            assert room in ("retry", "authority", "log", *OPERATORS, "cli", "testing"), name


def test_only_one_module_knows_the_retry_library() -> None:
    users = [name for name, path in modules() if "tenacity" in path.read_text(encoding="utf-8")]
    assert users == ["retry"]


def test_the_library_never_prints_exits_or_reads_the_environment() -> None:
    for name, path in modules():
        room = name.split(".")[0]
        if room == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit", "input"), name
            if isinstance(node, ast.Attribute):
                assert room == "testing" or node.attr not in ("environ", "getenv"), name
                assert not (node.attr == "exit" and isinstance(node.value, ast.Name) and node.value.id == "sys"), name


def test_every_room_is_in_the_layers() -> None:
    assert {name.split(".")[0] for name, _ in modules()} == set(LEVEL)
