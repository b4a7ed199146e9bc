"""Certificates: a real etcd takes whom it shall, and nobody else; and it is who it says."""

from __future__ import annotations

import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordjournal.etcd import Put, Refused
from coordjournal.etcd.client import EtcdClient, Tls
from coordjournal.testing.certificates import CertificateAuthority
from coordjournal.testing.etcd import EtcdServer
from tests.support import CHECKOUT
from tests.testing.keys import get, put


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(
    authority: CertificateAuthority, tmp_path_factory: pytest.TempPathFactory, coordjournal_etcd_binary: str
) -> Iterator[EtcdServer]:
    tls = authority.server("etcd", "localhost", "127.0.0.1")
    with EtcdServer(tmp_path_factory.mktemp("etcd"), tls=tls, binary=coordjournal_etcd_binary) as server:
        yield server


def test_a_client_with_a_certificate_is_served(server: EtcdServer, authority: CertificateAuthority) -> None:
    client = authority.client("node")
    put(server, "a", "1", client=client)
    assert get(server, "a", client=client) == "1"


def test_a_client_without_a_certificate_is_not(server: EtcdServer) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        get(server, "a")


def test_a_client_with_an_expired_certificate_is_not(server: EtcdServer, authority: CertificateAuthority) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        get(server, "a", client=authority.client("late", days=-1))


def test_a_client_of_another_authority_is_not(server: EtcdServer, tmp_path: Path) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError)):
        get(server, "a", client=CertificateAuthority(tmp_path).client("node"))


def test_a_certificate_says_which_user_of_etcd_one_is(
    authority: CertificateAuthority, tmp_path: Path, coordjournal_etcd_binary: str
) -> None:
    tls = authority.server("etcd", "127.0.0.1")
    mine, theirs = Put(b"/coordjournal/a", b"1"), Put(b"/another/a", b"1")
    with EtcdServer(tmp_path, tls=tls, binary=coordjournal_etcd_binary) as server:
        server.enable_auth({"root": "r", "node": "n"}, client=authority.client("root"))
        with closing(EtcdClient(server.endpoint, tls=Tls(*authority.client("node")))) as client:
            assert client.txn([], [mine], timeout=10).succeeded
            with pytest.raises(Refused, match="this user may not"):
                client.txn([], [theirs], timeout=10)
        nobody = EtcdClient(server.endpoint, tls=Tls(*authority.client("nobody")))
        with closing(nobody), pytest.raises(Refused, match="this user may not"):
            nobody.txn([], [mine], timeout=10)


def test_a_client_sees_that_a_server_is_of_another_authority(
    authority: CertificateAuthority, tmp_path: Path, coordjournal_etcd_binary: str
) -> None:
    theirs = CertificateAuthority(tmp_path / "theirs").server("etcd", "localhost", "127.0.0.1")
    with EtcdServer(tmp_path / "etcd", tls=theirs) as server:
        server.tls = authority.server("ours", "127.0.0.1")  # whom the client trusts
        with pytest.raises(ssl.SSLCertVerificationError):
            get(server, "a", client=authority.client("node"))


def test_an_authority_that_is_there_is_used_again(tmp_path: Path) -> None:
    first = CertificateAuthority(tmp_path)
    before = (first.ca.read_bytes(), (tmp_path / "ca-key.pem").read_bytes())
    again = CertificateAuthority(tmp_path).client("node")
    assert (first.ca.read_bytes(), (tmp_path / "ca-key.pem").read_bytes()) == before
    assert again.ca.read_bytes() == before[0]


def test_a_certificate_says_what_it_is_for(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority = CertificateAuthority(tmp_path)
    ca = x509.load_pem_x509_certificate(authority.ca.read_bytes())
    server = x509.load_pem_x509_certificate(authority.server("etcd1", "etcd1", "10.0.0.1").cert.read_bytes())
    client = x509.load_pem_x509_certificate(authority.client("node").cert.read_bytes())
    for issued in (server, client):
        issued.verify_directly_issued_by(ca)
        assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["etcd1"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert [name.value for name in client.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["node"]
    usage = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert ExtendedKeyUsageOID.SERVER_AUTH not in usage


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path)
    keys = [tmp_path / "ca-key.pem", authority.server("etcd", "localhost").key, authority.client("node").key]
    assert [stat.S_IMODE(key.stat().st_mode) for key in keys] == [0o600] * 3


def test_the_program_makes_a_directory_that_is_closed_to_others_and_so_is_every_key(tmp_path: Path) -> None:
    directory = tmp_path / "certificates"
    assert program(directory, "etcd1", "etcd2", "--users", "root", "wiki").returncode == 0
    assert (directory / ".gitignore").read_text(encoding="ascii") == "*\n"
    made = {str(path.relative_to(directory)) for path in directory.rglob("*.pem")}
    parties = ["etcd1", "etcd2", "root", "wiki"]
    assert made == {"ca.pem", "ca-key.pem"} | {f"{who}/{part}.pem" for who in parties for part in ("ca", "cert", "key")}
    assert {mode(path) for path in (directory, *(directory / who for who in parties))} == {0o700}
    assert {mode(path) for path in directory.rglob("*key.pem")} == {0o600}


def test_a_key_is_readable_for_a_container_only_where_that_is_said(tmp_path: Path) -> None:
    directory = tmp_path / "certificates"
    for readable in (["--readable", "wiki"], []):  # made again without it, it is closed again
        assert program(directory, "etcd1", "--users", "root", "wiki", *readable).returncode == 0
        assert mode(directory) == 0o700
        assert mode(directory / "root" / "key.pem") == 0o600
        assert (mode(directory / "wiki"), mode(directory / "wiki" / "key.pem")) == (
            (0o755, 0o644) if readable else (0o700, 0o600)
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}", "../../evil"], "neither the name of a host nor an address"),
        (["{}", "/tmp/evil"], "neither the name of a host nor an address"),
        (["{}", "a b"], "neither the name of a host nor an address"),
        (["{}", "fe80::1%../../evil"], "neither the name of a host nor an address"),
        (["{}", ""], "neither the name of a host nor an address"),
        (["{}", ".."], "neither the name of a host nor an address"),
        (["{}", "ca.pem"], "neither the name of a host nor an address"),
        (["{}", "etcd1", "--users", "../evil"], "no name of a user"),
        (["{}", "etcd1", "--users", "a b"], "no name of a user"),
        (["{}", "etcd1", "--users", "x" * 65], "no name of a user"),
        (["{}", "etcd1", "--users", "etcd1"], "names a server and a user"),
        (["{}", "etcd1", "--users", "root", "--readable", "node"], "none of the users"),
        (["{}", "etcd1", "--days", "1e9"], "too many"),
        (["/proc/x", "localhost"], "/proc/x: "),
        (["/dev/null", "localhost"], "/dev/null: "),
    ],
)
def test_what_cannot_be_made_is_a_usage_error_and_nothing_is_made_elsewhere(
    words: list[str], said: str, tmp_path: Path
) -> None:
    directory = tmp_path / "deep" / "certificates"
    done = program(*(word.format(directory) for word in words))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert not [path for path in tmp_path.rglob("*") if directory not in (path, *path.parents) and path.is_file()]
    assert not list(tmp_path.rglob("*evil*"))


def test_files_that_are_no_authority_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    (tmp_path / "ca-key.pem").write_text("nonsense")
    done = program(tmp_path, "etcd1")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def program(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run what `scripts/certificates` runs, where nobody is forbidden anything by the umask."""
    command = [sys.executable, "-m", "coordjournal.testing.certificates", *map(str, words)]
    return subprocess.run(command, cwd=CHECKOUT, check=False, umask=0, capture_output=True, text=True)
