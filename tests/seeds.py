"""The corpus of the fuzzer: raw requests in ``tests/corpus``, a conversation with the door in each file, to be read.

A file begins with what it is, and with the answers that it gets: ``# answers: 202 401``, or ``none`` for a connection
that is closed without a word. Then come its requests, with ``----`` between two. In a request a new line of the file is
nothing; ``\\r``, ``\\n``, ``\\t`` and ``\\xNN`` are bytes. What is in angle brackets is filled in when it is sent:

=====================  =====================================================================
``<3 of x>``           the text, so many times
``<number>``           the number of the request, so that no two are alike
``<now>``              the seconds since the epoch
``<length>``           how long the body is
``<sha256>``, ...      what signs the body: ``<sha1>``, ``<standard>``, ``<token>``; ``<json-sha256>`` that of a form
``<form>``             at the start of a body: it is sent as a form
``<chunks 40>``        at the start of a body: it is sent in chunks of so many bytes
=====================  =====================================================================
"""

from __future__ import annotations

import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_plus

from tests.payloads import SECRET
from twisted_hook.hooks import Hook, Secret, Subscription

NOW = 1_700_000_000.0
"""When the requests are sent."""
CORPUS = Path(__file__).parent / "corpus"
SIGNING = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

WEB = Subscription("web", ("acme/web",), "refs/heads/main")
TAGGED = Subscription("tagged", ("acme/web",), tag="v*")
HOOKS = (
    *(
        Hook(name=forge, path=f"/hooks/{forge}", forge=forge, secrets=(Secret(SECRET),), subscriptions=(WEB,))
        for forge in ("github", "gitlab", "gitea", "forgejo", "bitbucket", "bitbucket-server")
    ),
    Hook(name="standard", path="/hooks/standard", forge="standard", secrets=(Secret(SIGNING),), subscriptions=(WEB,)),
    Hook(
        name="signed",
        path="/hooks/gitlab-signed",
        forge="gitlab",
        secrets=(Secret(SECRET), Secret(SIGNING)),
        subscriptions=(WEB,),
    ),
    Hook(
        name="legacy",
        path="/hooks/legacy",
        forge="github",
        secrets=(Secret(SECRET),),
        allow_sha1=True,
        subscriptions=(WEB,),
    ),
    Hook(name="tags", path="/hooks/tags", forge="github", secrets=(Secret(SECRET),), subscriptions=(WEB, TAGGED)),
)
"""A door where the requests of the corpus may knock: every forge, and apps for one branch and for some tags."""

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|([rnt]))")
_CONTROL = {b"r": b"\r", b"n": b"\n", b"t": b"\t"}
_REPEATED = re.compile(rb"<([0-9]{1,6}) of ([^>]*)>")
_WORD = re.compile(rb"<([a-z0-9-]+)>")
_CHUNKS = re.compile(rb"<chunks ([0-9]{1,4})>")


@dataclass(frozen=True)
class Template:
    """A request before it is filled in."""

    head: tuple[bytes, ...]
    """Its lines, without what ends them."""
    body: bytes
    whole: bool = True
    """Whether its head has an end."""

    @classmethod
    def of(cls, data: bytes) -> Template:
        head, end, body = data.partition(b"\r\n\r\n")
        return cls(tuple(head.split(b"\r\n")), body, bool(end))


@dataclass(frozen=True)
class Seed:
    """One file of the corpus."""

    name: str
    says: str
    answers: tuple[int, ...]
    templates: tuple[Template, ...]

    @classmethod
    def read(cls, path: Path) -> Seed:
        says, answers, text = path.read_text().split("\n", 2)
        parts = text.removesuffix("\n").split("\n----\n")
        told = answers.removeprefix("# answers: ")
        return cls(
            path.stem,
            says.removeprefix("# "),
            () if told == "none" else tuple(map(int, told.split())),
            tuple(Template.of(_unescaped(part.replace("\n", "").encode())) for part in parts),
        )


def corpus() -> list[Seed]:
    return [Seed.read(path) for path in sorted(CORPUS.glob("*.http"))]


def filled(templates: Sequence[Template], number: str, now: float) -> bytes:
    """The bytes of these requests, signed."""
    return b"".join(_filled(template, number.encode(), b"%d" % now) for template in templates)


def _filled(template: Template, number: bytes, now: bytes) -> bytes:
    chunks = _CHUNKS.match(template.body)
    body = _expanded(template.body[chunks.end() if chunks else 0 :], {b"number": number, b"now": now})
    json = body.removeprefix(b"<form>")
    if json != body:
        body = b"payload=" + quote_plus(json).encode()
    words = {
        b"number": number,
        b"now": now,
        b"length": b"%d" % len(body),
        b"token": SECRET,
        b"sha256": hmac.digest(SECRET, body, "sha256").hex().encode(),
        b"sha1": hmac.digest(SECRET, body, "sha1").hex().encode(),
        b"json-sha256": hmac.digest(SECRET, json, "sha256").hex().encode(),
        b"standard": _standard(b"msg-%b.%b.%b" % (number, now, body)),
    }
    head = _expanded(b"\r\n".join(template.head), words)
    return head + (b"\r\n\r\n" if template.whole else b"") + (_chunked(body, int(chunks[1])) if chunks else body)


def _expanded(text: bytes, words: dict[bytes, bytes]) -> bytes:
    if b"<" not in text:
        return text
    text = _REPEATED.sub(lambda found: found[2] * int(found[1]), text)
    return _WORD.sub(lambda found: words.get(found[1], found[0]), text)


def _standard(signed: bytes) -> bytes:
    return b64encode(hmac.digest(b64decode(SIGNING.removeprefix(b"whsec_")), signed, "sha256"))


def _chunked(body: bytes, size: int) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)] if size else []
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _unescaped(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()) if found[1] else _CONTROL[found[2]], text)
