"""Reads the certificates with which the door speaks TLS, and finds the one that is meant for a name.

Reads files only, and never serves what does not fit together. Twisted's own ``tls:`` endpoint (26.10) never looks at a
renewed file of a name that it knows, logs a line for each name that it does not know, and a traceback for one that is
not ASCII; its ``ssl:`` endpoint sends the first certificate of a file alone. So the files are read here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import (
    Certificate,
    DNSName,
    ExtensionNotFound,
    SubjectAlternativeName,
    load_pem_x509_certificates,
)
from OpenSSL.SSL import Context, Error
from twisted.internet.ssl import CertificateOptions, DiffieHellmanParameters, TLSVersion
from twisted.python.filepath import FilePath

from twisted_hook.addresses import endpoint_arguments

_LARGEST_FILE = 1 << 20
_BEGIN = b"-----BEGIN"


class BadCertificate(Exception):
    """It cannot be served; the text names the file, and says why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key, and the certificates that go with it: its own one first."""

    key: PrivateKeyTypes
    chain: tuple[Certificate, ...]
    where: Path


@dataclass(frozen=True)
class Files:
    """A private key and its certificate, as the ``ssl:`` endpoint names them."""

    key: Path
    certificate: Path
    intermediates: Path | None = None
    diffie_hellman: Path | None = None

    def options(self) -> CertificateOptions:
        """Raises ``BadCertificate``."""
        chain = _certificates(self.certificate)
        if self.intermediates is not None:
            chain += _certificates(self.intermediates)
        key = _key(_content(self.key), self.key)
        if _public(chain[0]) != _public(key):
            raise BadCertificate(f"{self.key} is not the key of the certificate in {self.certificate}")
        return _options([Pair(key, tuple(chain), self.certificate)], self.diffie_hellman)

    def stamp(self) -> object:
        """Never another: only a reload reads these files again, as they may be replaced one by one."""
        return None


@dataclass(frozen=True)
class Directory:
    """Keys and certificates in the ``*.pem`` files below a directory, as certbot keeps them."""

    path: Path

    def options(self) -> CertificateOptions:
        """Raises ``BadCertificate``."""
        certificates: list[tuple[Path, Certificate]] = []
        keys: dict[bytes, PrivateKeyTypes] = {}
        for file in self._files():
            for block in _blocks(_content(file)):
                if block.startswith(_BEGIN + b" CERTIFICATE-"):
                    certificates += ((file, each) for each in _loaded(block, file))
                elif b"PRIVATE KEY-" in block.partition(b"\n")[0]:
                    key = _key(block, file)
                    keys[_public(key)] = key
        return _options(list(_paired(certificates, keys, self.path)))

    def stamp(self) -> object:
        """Another one as soon as a file is another."""
        return [(file, status.st_ino, status.st_size, status.st_mtime_ns) for file, status in self._looked_at()]

    def _looked_at(self) -> list[tuple[Path, os.stat_result]]:
        try:
            return [(file, file.stat()) for file in self._files()]
        except OSError as error:  # one has just gone
            raise BadCertificate(f"{self.path} cannot be read: {error.strerror}") from None

    def _files(self) -> list[Path]:
        try:
            found = sorted(file for file in self.path.rglob("*.pem") if file.is_file())
        except OSError as error:
            raise BadCertificate(f"{self.path} cannot be read: {error.strerror}") from None
        if not found:
            raise BadCertificate(f"{self.path} is no directory with *.pem files")
        return found


Source = Files | Directory


def source_of(description: str) -> Source | None:
    """Where the certificates of a Twisted endpoint are; None for one without TLS.

    Raises ``ValueError`` where it is told what it cannot do.
    """
    inner = description.removeprefix("haproxy:")
    if not inner.startswith(("ssl:", "tls:")):
        return None
    kind, given = endpoint_arguments(inner)
    if "sslmethod" in given:
        raise ValueError("sslmethod cannot be chosen: TLS 1.2 and newer is spoken, and nothing else")
    if kind == "tls":
        return Directory(Path(given["path"]))
    optional = {name: Path(given[name]) for name in ("extraCertChain", "dhParameters") if name in given}
    key = Path(given.get("privateKey", "server.pem"))
    certificate = Path(given.get("certKey", key))
    return Files(key, certificate, optional.get("extraCertChain"), optional.get("dhParameters"))


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(_LARGEST_FILE)
    except OSError as error:
        raise BadCertificate(f"{path} cannot be read: {error.strerror}") from None


def _blocks(text: bytes) -> list[bytes]:
    return [_BEGIN + rest for rest in text.split(_BEGIN)[1:]]


def _certificates(path: Path) -> list[Certificate]:
    return _loaded(_content(path), path)


def _loaded(text: bytes, path: Path) -> list[Certificate]:
    try:
        found = load_pem_x509_certificates(text)
        _ = [(each.public_key(), each.subject, each.issuer) for each in found]  # each is read when it is asked for
    except ValueError:
        raise BadCertificate(f"{path} holds no certificate in PEM format") from None
    except UnsupportedAlgorithm:
        raise BadCertificate(f"{path} holds a certificate for a key of a kind that is not known here") from None
    return found


def _key(text: bytes, path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(text, password=None)
    except TypeError:
        raise BadCertificate(f"the private key in {path} has a password, and nobody is there to say it") from None
    except (ValueError, UnsupportedAlgorithm):
        raise BadCertificate(f"{path} holds no private key in PEM format") from None


def _public(part: Certificate | PrivateKeyTypes) -> bytes:
    """What a key and its certificate have in common."""
    return part.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _paired(
    certificates: Sequence[tuple[Path, Certificate]], keys: Mapping[bytes, PrivateKeyTypes], directory: Path
) -> Iterable[Pair]:
    """Every certificate whose key is there, with those that vouch for it; of several for one key the youngest."""
    own = {}
    for path, certificate in sorted(certificates, key=lambda each: each[1].not_valid_before_utc):
        if _public(certificate) in keys:
            own[_public(certificate)] = (path, certificate)
    if not own:
        raise BadCertificate(f"{directory} holds no certificate together with its private key")
    issuers = {each.subject: each for _, each in certificates if _public(each) not in own}
    for public, (path, certificate) in own.items():
        chain = [certificate]
        while (issuer := issuers.get(chain[-1].issuer)) is not None and issuer not in chain:
            chain.append(issuer)
        yield Pair(keys[public], tuple(chain), path)


def _options(pairs: Sequence[Pair], diffie_hellman: Path | None = None) -> CertificateOptions:
    """Raises ``BadCertificate``. Who asks for a name of which there is nothing is served the first pair."""
    contexts: dict[str, Context] = {}
    options = [_checked(pair, diffie_hellman, _lookup(contexts)) for pair in pairs]
    for pair, each in zip(pairs, options, strict=True):
        contexts.update(dict.fromkeys(_names(pair.chain[0]), each.getContext()))
    return options[0]


def _checked(
    pair: Pair, diffie_hellman: Path | None, lookup: Callable[[bytes | None], Context | None]
) -> CertificateOptions:
    certificate, *chain = pair.chain
    try:
        options = CertificateOptions(
            privateKey=cast("Any", pair.key),  # Twisted declares the types that pyOpenSSL has deprecated
            certificate=cast("Any", certificate),
            extraCertChain=cast("Any", chain),
            raiseMinimumTo=TLSVersion.TLSv1_2,
            acceptableProtocols=[b"http/1.1"],
            dhParameters=_parameters(diffie_hellman),
            contextForServerName=lookup,
        )
        options.getContext()
    except (Error, ValueError, TypeError, OSError) as error:
        raise BadCertificate(f"{pair.where} cannot be used: {error}") from None
    return options


def _parameters(path: Path | None) -> DiffieHellmanParameters | None:
    return None if path is None else DiffieHellmanParameters.fromFile(FilePath(str(path)))


def _names(certificate: Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except (ExtensionNotFound, ValueError):
        return []
    return [name.lower() for name in names.get_values_for_type(DNSName)]


def _lookup(contexts: Mapping[str, Context]) -> Callable[[bytes | None], Context | None]:
    def lookup(name: bytes | None) -> Context | None:
        """The context for a name that a client asked for, which may be any bytes; None stays with the first."""
        asked = (name or b"").decode("ascii", "replace").lower()
        return contexts.get(asked) or contexts.get(f"*.{asked.partition('.')[2]}")

    return lookup
