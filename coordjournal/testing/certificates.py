"""A certificate authority in a directory: certificates for servers of etcd, and for its users.

`python -m coordjournal.testing.certificates` makes a whole set; `scripts/certificates` runs it.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
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


class Issued(NamedTuple):
    """Three PEM files: whom to trust, one's certificate, its key."""

    ca: Path
    cert: Path
    key: Path


class CertificateAuthority:
    """The authority whose files are in `directory`, as `ca.pem` and `ca-key.pem`; it is made if there is none.

    Whoever gets a certificate has a directory of their own in it, with `ca.pem`, `cert.pem` and `key.pem`;
    issued again, they are written in place. Keys are on the curve P-256, and readable by their owner only.
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

        It has no common name: etcd would take that for a user when its own gateway calls it. With `days`
        below 0 it has expired.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        return self._issue(name, x509.Name([]), [Usage.SERVER_AUTH, Usage.CLIENT_AUTH], days, names)

    def client(self, user: str, *, days: float = LEAF_DAYS) -> Issued:
        """Issue a certificate with which a client is that user of etcd (its common name)."""
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user)])
        return self._issue(user, subject, [ExtendedKeyUsageOID.CLIENT_AUTH], days)

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
        assert isinstance(key, EllipticCurvePrivateKey), f"{key_path} was not made by this"
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
        issued = Issued(own / "ca.pem", own / "cert.pem", own / "key.pem")
        issued.ca.write_bytes(self.ca.read_bytes())
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

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_key(path: Path, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _write_certificate(path: Path, builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    path.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))


def main() -> None:
    """Make an authority in a directory that is closed to others, and certificates for servers and users."""
    parser = argparse.ArgumentParser(prog="scripts/certificates", description=main.__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("certificates"))
    parser.add_argument("hosts", nargs="*", default=["etcd1", "etcd2", "etcd3"], help="names or addresses of servers")
    parser.add_argument("--users", nargs="+", default=["root", "node", "submitter"], help="users of etcd")
    parser.add_argument("--days", type=float, default=LEAF_DAYS, help="for how long certificates hold")
    arguments = parser.parse_args()
    authority = CertificateAuthority(arguments.directory)
    arguments.directory.chmod(0o700)
    (arguments.directory / ".gitignore").write_text("*\n", encoding="ascii")  # keys are for no repository
    for host in arguments.hosts:
        authority.server(host, host, "localhost", "127.0.0.1", days=arguments.days)
    for user in arguments.users:
        issued = authority.client(user, days=arguments.days)
        # A container that gets the user's own directory reads it as someone else; here the one above is closed.
        issued.key.parent.chmod(0o755)
        for path in issued:
            path.chmod(0o644)


if __name__ == "__main__":
    main()
