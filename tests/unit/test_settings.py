"""What a user configures, as arguments or as variables: whatever is not of its form is told as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import coordjournal as cj
from coordjournal.authority.settings import Settings


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"etcd": 5}, "etcd: a text, not of the type int"),
        ({"etcd": None}, "etcd: a text, not None"),
        ({"etcd": ["a:1", "b:1"]}, "etcd: a text, not of the type list"),
        ({"etcd": "h:1", "tls": 1}, "tls: a Tls, not of the type int"),
        ({"tls": ("ca.pem", None, None)}, "tls: a Tls, not of the type tuple"),
        ({"tls": cj.Tls(ca=5)}, "tls: ca is the path of a file, not of the type int"),  # type: ignore[arg-type]
        ({"etcd": "h:1", "tls": cj.Tls(cert="c")}, "together"),
        ({"etcd": "h:1", "username": 5, "password": "p"}, "username: a text, not of the type int"),
        ({"etcd": "h:1", "username": "u", "password": b"p"}, "password: a text, not of the type bytes"),
        ({"etcd": "h:1", "username": "\udcff", "password": "p"}, "username is not UTF-8"),
        ({"etcd": "h:1", "username": "u"}, "'u', is named without a password"),
        ({"prefix": 5}, "prefix: a text, not of the type int"),
        ({"ttl": "x"}, "ttl: whole seconds from 2 to 3600, not 'x'"),
        ({"ttl": True}, "ttl: whole seconds"),
        ({"role": 5}, "role: one of auto, client, holder, not 5"),
        ({"role": []}, "role: one of auto, client, holder"),
    ],
)
def test_an_argument_of_another_type_is_an_invalid_one(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(cj.InvalidEvent, match=told):
        cj.DecisionLog.open("wiki.git", **arguments)


def test_the_variables_are_the_command_lines(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key", "password"):
        (tmp_path / name).write_text(f"{name}\r\n")
    files = {f"COORDJOURNAL_ETCD_{name}": str(tmp_path / file) for name, file in FILES.items()}
    environment = {
        "COORDJOURNAL_ETCD": "h:1",
        "COORDJOURNAL_ETCD_USER": "web",
        "COORDJOURNAL_ETCD_PASSWORD": "",
        "COORDJOURNAL_PREFIX": "/mine/",
        "COORDJOURNAL_TTL": "7",
        "COORDJOURNAL_ROLE": "client",
        **files,
    }
    tls = cj.Tls(*(str(tmp_path / name) for name in ("ca", "cert", "key")))
    assert Settings.from_environment(environment) == Settings("h:1", tls, "web", "password", "/mine/", 7, "client")
    assert Settings.from_environment({}) == Settings()


FILES = {"CACERT": "ca", "CERT": "cert", "KEY": "key", "PASSWORD_FILE": "password"}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("COORDJOURNAL_REPO", "", "name it in COORDJOURNAL_REPO"),
        ("COORDJOURNAL_CONSISTENCY", "some", "COORDJOURNAL_CONSISTENCY: one of"),
        ("COORDJOURNAL_ETCD_KEY", "/nowhere", "COORDJOURNAL_ETCD_KEY: '/nowhere' cannot be read: No such file"),
        ("COORDJOURNAL_ETCD_PASSWORD_FILE", "/dev/zero", "COORDJOURNAL_ETCD_PASSWORD_FILE: '/dev/zero' is no password"),
        ("COORDJOURNAL_TTL", "soon", "COORDJOURNAL_TTL: a whole number"),
        ("COORDJOURNAL_ROLE", "boss", "role: one of"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, told: str) -> None:
    with pytest.raises(cj.InvalidEvent, match=told):
        cj.DecisionLog.from_environment({"COORDJOURNAL_REPO": "wiki.git", name: value})


def test_a_log_is_opened_as_the_variables_say(tmp_path: Path) -> None:
    environment = {
        "COORDJOURNAL_REPO": str(tmp_path / "wiki.git"),
        "COORDJOURNAL_ACTOR": "web@example.org",
    }
    with cj.DecisionLog.from_environment(environment) as log:
        log.append("handbook", cj.AliasSet("Home", "a:Start"))
        (entry,) = log.events("handbook")
    assert entry.actor == "web@example.org"
