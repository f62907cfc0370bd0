"""Certificates of our own making, in the files in which a door finds them."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """Who vouches for certificates: itself, through one in between."""

    def __init__(self) -> None:
        self._root_key, self._key = generate_private_key(SECP256R1()), generate_private_key(SECP256R1())
        self.root = _certificate("Root", "Root", self._root_key, self._root_key, serial=1, authority=True)
        self.between = _certificate("Between", "Root", self._key, self._root_key, serial=2, authority=True)

    def write(self, directory: Path, serial: int, *names: str) -> None:
        """A key and its chain, as certbot writes them; each file takes the place of the one before at once."""
        key = generate_private_key(SECP256R1())
        own = _certificate(names[0], "Between", key, self._key, serial=serial, names=names)
        directory.mkdir(parents=True, exist_ok=True)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        replace(directory / "fullchain.pem", _pem(own) + _pem(self.between))
        replace(directory / "privkey.pem", secret)

    def client(self) -> ssl.SSLContext:
        """What a client that trusts us alone begins with."""
        context = ssl.create_default_context(cadata=_pem(self.root).decode())
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context


def replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _certificate(
    subject: str,
    issuer: str,
    key: EllipticCurvePrivateKey,
    by: EllipticCurvePrivateKey,
    *,
    serial: int,
    names: tuple[str, ...] = (),
    authority: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - timedelta(days=1) + timedelta(seconds=serial))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
    return builder.sign(by, SHA256())
