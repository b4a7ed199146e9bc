"""A certificate authority in a directory: certificates for servers of etcd, and for its users.

`python -m coordjournal.testing.certificates` makes a whole set; `scripts/certificates` runs it.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 397
"""For how long certificates hold, unless told otherwise: the longest that browsers take (CA/B Forum, 2020)."""

_SKEW: Final = timedelta(minutes=5)
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")  # 64 are the most that a common name has
_OWN_FILES: Final = frozenset({"ca.pem", "ca-key.pem"})


class Issued(NamedTuple):
    """Three PEM files: whom to trust, one's certificate, its key."""

    ca: Path
    cert: Path
    key: Path


class CertificateAuthority:
    """The authority whose files are in `directory`, as `ca.pem` and `ca-key.pem`; it is made if there is none.

    Whoever gets a certificate has a directory of their own in it, with `ca.pem`, `cert.pem` and `key.pem`;
    issued again, they are written in place. Keys are on the curve P-256, and readable by their owner only.
    Raises `ValueError` for a name that is none, or if the files there are none of this, and `OSError`.
    """

    def __init__(self, directory: str | os.PathLike[str], *, days: int = CA_DAYS) -> None:
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca = self.directory / "ca.pem"
        key = self.directory / "ca-key.pem"
        if not self.ca.exists():
            self._make(key, days)
        self._read(key)

    def server(self, name: str, *hosts: str, days: float = LEAF_DAYS) -> Issued:
        """Issue a certificate for a server that is reached as `hosts`, names or addresses; it may be a peer too.

        `name` is that of its directory: a host as well.

        It has no common name: etcd would take that for a user when its own gateway calls it. With `days`
        below 0 it has expired.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

        for host in (name, *hosts):
            _check_host(host)
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._issue(name, x509.Name([]), [Usage.SERVER_AUTH, Usage.CLIENT_AUTH], days, names)

    def client(self, user: str, *, days: float = LEAF_DAYS, readable: bool = False) -> Issued:
        """Issue a certificate with which a client is that user of etcd (its common name).

        With `readable`, whoever reaches the directory may read the key: a container gets that directory alone,
        and reads it as a user whom this host does not know. The directory above is to be closed, then.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        _check_user(user)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user)])
        issued = self._issue(user, subject, [ExtendedKeyUsageOID.CLIENT_AUTH], days)
        if readable:
            issued.key.chmod(0o644)
            issued.key.parent.chmod(0o755)
        return issued

    def _make(self, key_path: Path, days: int) -> None:
        from cryptography import x509
        from cryptography.x509.oid import NameOID

        key = _new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "coordjournal's own authority")])
        builder = _builder(name, name, key, days).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_key_usage(signs_certificates=True), True)
        _write_key(key_path, key)
        _write_certificate(self.ca, builder, key)

    def _read(self, key_path: Path) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(key_path.read_bytes(), password=None)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise ValueError(f"{key_path} is a key of another kind; it was not made by this")
        self._key = key
        self._name = x509.load_pem_x509_certificate(self.ca.read_bytes()).subject

    def _issue(
        self,
        name: str,
        subject: x509.Name,
        usages: list[x509.ObjectIdentifier],
        days: float,
        names: x509.SubjectAlternativeName | None = None,
    ) -> Issued:
        from cryptography import x509

        own = self.directory / name
        own.mkdir(exist_ok=True)
        own.chmod(0o700)
        issued = Issued(own / "ca.pem", own / "cert.pem", own / "key.pem")
        _write_open(issued.ca, self.ca.read_bytes())
        key = _new_key()
        builder = _builder(subject, self._name, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_key_usage(signs_certificates=False), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
        )
        if names is not None:
            builder = builder.add_extension(names, critical=not subject)
        _write_key(issued.key, key)
        _write_certificate(issued.cert, builder, self._key)
        return issued


def _check_host(name: str) -> None:
    if not (_HOST.fullmatch(name) or _is_address(name)) or name in _OWN_FILES:
        raise ValueError(f"{name!r} is neither the name of a host nor an address")


def _check_user(name: str) -> None:
    if not _USER.fullmatch(name) or name in _OWN_FILES:
        raise ValueError(
            f"{name!r} is no name of a user: up to 64 letters, digits and _.@+-, the first a letter or digit"
        )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone, which may be any text


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    until = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, until) - _SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    from cryptography import x509

    return x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)


def _write_key(path: Path, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # one that was there keeps its own otherwise
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _write_certificate(path: Path, builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    _write_open(path, builder.sign(key, SHA256()).public_bytes(Encoding.PEM))


def _write_open(path: Path, content: bytes) -> None:
    """Write what everybody may know: who is who is not for the umask to hide."""
    path.write_bytes(content)
    path.chmod(0o644)


def main() -> None:
    """Make an authority in a directory, and certificates for servers and users, each with a directory in it.

    Directories and keys are closed to everybody else.
    """
    parser = argparse.ArgumentParser(prog="scripts/certificates", description=main.__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("certificates"))
    parser.add_argument("hosts", nargs="*", default=["etcd1", "etcd2", "etcd3"], help="names or addresses of servers")
    parser.add_argument("--users", nargs="+", default=["root", "node", "submitter"], help="users of etcd")
    parser.add_argument(
        "--readable",
        nargs="+",
        default=[],
        metavar="USER",
        help="users whose key is for a container, which reads it as another user than you: whoever reaches its"
        " directory may, and the directory above is closed",
    )
    parser.add_argument("--days", type=float, default=LEAF_DAYS, help="for how long certificates hold")
    arguments = parser.parse_args()
    try:
        _check(arguments.hosts, arguments.users, arguments.readable)
        _make_all(arguments)
    except ValueError as error:
        parser.error(str(error))
    except OverflowError:
        parser.error(f"--days: {arguments.days:g} are too many")
    except OSError as error:
        parser.error(f"{error.filename or arguments.directory}: {error.strerror or error}")


def _check(hosts: list[str], users: list[str], readable: list[str]) -> None:
    """Raise `ValueError` for names that are none, or would share a directory; before anything is made."""
    for host in hosts:
        _check_host(host)
    for user in users:
        _check_user(user)
    if twice := [name for name in users if name in hosts]:
        raise ValueError(f"{twice[0]!r} names a server and a user; each has a directory of its own")
    if unknown := [name for name in readable if name not in users]:
        raise ValueError(f"--readable: {unknown[0]!r} is none of the users, {', '.join(users)}")


def _make_all(arguments: argparse.Namespace) -> None:
    authority = CertificateAuthority(arguments.directory)
    arguments.directory.chmod(0o700)
    (arguments.directory / ".gitignore").write_text("*\n", encoding="ascii")  # keys are for no repository
    for host in arguments.hosts:
        authority.server(host, host, "localhost", "127.0.0.1", days=arguments.days)
    for user in arguments.users:
        authority.client(user, days=arguments.days, readable=user in arguments.readable)


if __name__ == "__main__":
    main()
