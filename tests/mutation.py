"""Requests that nobody has thought of: those of the corpus, changed at random, and sent in random pieces.

``(seed, number)`` names one: the same two give the same bytes, as long as the corpus stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from random import Random
from typing import Any

from tests.seeds import Seed, Template, filled

NUMBERS = (
    *(b"0", b"1", b"-1", b"00", b"1e9", b"0x10", b"1_0", b"+1", b"\xd9\xa1", b"", b" ", b"NaN"),
    *(b"255", b"256", b"65535", b"65536", b"2147483647", b"2147483648", b"4294967296", b"18446744073709551616"),
    *(b"26214400", b"26214401", b"9" * 30, b"9" * 4301),
)
CONTROL = (b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\t", b"\x0b", b"\x1b[2J", b"\x7f", b"\x85", b"\xff", b" ", b":")
LINES = (
    b"Content-Length: 0",
    b"Content-Length: <length>",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Content-Encoding: gzip",
    b"Content-Type: application/json",
    b"Content-Type: application/x-www-form-urlencoded",
    b"Content-Type: multipart/form-data; boundary=x",
    b"Connection: close",
    b"Connection: keep-alive, Upgrade",
    b"Expect: 100-continue",
    b"Host: other.example.com",
    b"X-Hub-Signature-256: sha256=<sha256>",
    b"X-Hub-Signature: sha256=<sha256>",
    b"X-Hub-Signature: sha1=<sha1>",
    b"X-Gitlab-Token: <token>",
    b"X-Gitea-Signature: <json-sha256>",
    b"X-GitHub-Event: ping",
    b"X-GitHub-Event: push",
    b"X-GitHub-Delivery: again",
    b"X-Forwarded-For: 198.51.100.7",
    b"Forwarded: for=unknown",
    b"Webhook-Timestamp: 99999999999999",
    b"Range: bytes=0-1",
    b"If-None-Match: *",
    b": nobody",
)
TEXTS = (
    *("refs/heads/main", "refs/heads/Main", "refs/heads/main ", "refs/heads/main\n", "refs/heads/main\0", "main"),
    *("refs/heads/ma\u0131n", "refs/heads/m\u0430in", "refs/heads/\uff4dain", "refs/heads/main\u200b"),
    *("refs/heads/*", "refs/heads/[m]ain", "refs/heads/../heads/main", "refs/heads//main", "refs/tags/main"),
    *("refs/tags/v1", "refs/tags/V1", "refs/tags/v", "refs/tags/x/v1", "refs/heads/--upload-pack=x", "HEAD", ""),
    *("acme/web", "ACME/Web", "acme/web.git", "acme/api", "acme/w\u212ab", "../acme/web", "0" * 40, "f" * 64, "f" * 41),
    *("\ud800", "\U0001f680", "\x1b[31m", "a" * 1025, "push", "tag_push", "branch", "repo:push", "DELETE", "<number>"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1e308, float("nan"), float("inf"), 2**64, 10**400, [], {}, [[]], {"": {}}),
    *([0] * 300, {str(n): n for n in range(300)}),
)


class End(Enum):
    """What the sender does when it has sent all."""

    WAITS = "waits for what comes"
    SHUTS = "closes its half"
    LEAVES = "hangs up"
    BREAKS_OFF = "hangs up half-way"


@dataclass(frozen=True)
class Attempt:
    """What is sent to the door on one connection."""

    seed: int
    number: int
    origin: str
    """The file of the corpus that it was."""
    pieces: tuple[bytes, ...]
    end: End

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


def attempt(corpus: Sequence[Seed], seed: int, number: int, now: float) -> Attempt:
    """The request of this name."""
    random = Random(f"{seed}/{number}")  # noqa: S311 - nobody has to guess it
    origin = random.choice(corpus)
    if random.random() < 0.5:  # what is genuine gets furthest
        origin = random.choice([one for one in corpus if one.answers == (202,)])
    templates = list(origin.templates)
    for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3))):
        place = random.randrange(len(templates))
        templates[place] = random.choice(_OF_TEMPLATES)(random, templates[place])
    if random.random() < 0.05:
        templates.insert(random.randrange(len(templates) + 1), random.choice(random.choice(corpus).templates))
    # Some are sent once more as they were: what repeats an id or a body is a case of its own.
    named = random.randrange(max(number, 1)) if random.random() < 0.05 else number
    data = filled(templates, f"{seed}-{named}", now)
    if random.random() < 0.3:
        for _ in range(random.randint(1, 4)):
            data = _mutated_bytes(random, data, corpus, now)
    end = random.choices(tuple(End), (55, 20, 15, 10))[0]
    return Attempt(seed, number, origin.name, _cut(random, data, end), end)


# --- changes before it is signed


def _without_a_line(random: Random, old: Template) -> Template:
    gone = random.randint(0, len(old.head))
    return replace(old, head=old.head[:gone] + old.head[gone + 1 :])


def _with_a_line_again(random: Random, old: Template) -> Template:
    return _with_line(random, old, random.choice(old.head) if old.head else b"")


def _with_another_line(random: Random, old: Template) -> Template:
    return _with_line(random, old, random.choice(LINES))


def _with_line(random: Random, old: Template, line: bytes) -> Template:
    place = random.randint(min(1, len(old.head)), len(old.head))
    return replace(old, head=(*old.head[:place], line, *old.head[place:]))


def _in_another_order(random: Random, old: Template) -> Template:
    return replace(old, head=(*old.head[:1], *random.sample(old.head[1:], len(old.head[1:]))))


def _with_a_line_changed(random: Random, old: Template) -> Template:
    if not old.head:
        return old
    place = random.randrange(len(old.head))
    name, colon, value = old.head[place].partition(b":")
    match random.randrange(5):
        case 0:
            line = name + colon + b" " + random.choice(NUMBERS)
        case 1:
            line = random.choice((name.upper(), name.lower(), name.swapcase())) + colon + value
        case 2:
            line = name + random.choice((b" :", b":\t", b"::", b"")) + value
        case 3:
            line = _changed(random, old.head[place])
        case _:
            line = name + colon + value * (2 if b" of " in value else random.choice((2, 3, 50, 2000)))
    return replace(old, head=(*old.head[:place], line[:20_000], *old.head[place + 1 :]))


def _with_another_body(random: Random, old: Template) -> Template:
    marks = b"<form>" if old.body.startswith(b"<form>") else b""
    return replace(old, body=marks + _changed(random, old.body[len(marks) :]))


def _with_other_json(random: Random, old: Template) -> Template:
    start = old.body.find(b"{")
    try:
        value = json.loads(old.body[start:]) if start >= 0 else {}
    except (ValueError, RecursionError):
        return _with_another_body(random, old)
    for _ in range(random.randint(1, 3)):
        value = _other_json(random, value)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5, separators=random.choice(((",", ":"), (", ", ": "))))
    return replace(old, body=old.body[: max(start, 0)] + text.encode(errors="surrogatepass"))


_OF_TEMPLATES: tuple[Callable[[Random, Template], Template], ...] = (
    _without_a_line,
    _with_a_line_again,
    _with_another_line,
    _in_another_order,
    _with_a_line_changed,
    _with_a_line_changed,
    _with_another_body,
    *(_with_other_json,) * 4,
)


def _other_json(random: Random, value: Any) -> Any:
    """The value with something in it changed, somewhere below."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        return _other_object(random, value)
    if isinstance(value, list) and value and random.random() < 0.85:
        place = random.randrange(len(value))
        if random.random() < 0.1:
            return value * random.choice((0, 2, 40))
        return [*value[:place], _other_json(random, value[place]), *value[place + 1 :]]
    if isinstance(value, str) and random.random() < 0.7:
        return random.choice((random.choice(TEXTS), value.upper(), value + " ", value[:-1], value[::-1], value * 2))
    if random.random() < 0.9:
        return random.choice(VALUES)
    for _ in range(random.choice((1, 10, 200))):
        value = [value]
    return value


def _other_object(random: Random, value: dict[str, Any]) -> dict[str, Any]:
    name = random.choice(tuple(value))
    match random.randrange(12):
        case 0:
            return {key: kept for key, kept in value.items() if key != name}
        case 1:
            return {(random.choice(TEXTS) if key == name else key): kept for key, kept in value.items()}
        case _:
            return {**value, name: _other_json(random, value[name])}


# --- changes of what would be sent


def _changed(random: Random, data: bytes) -> bytes:
    """Some of the bytes are others, more or fewer."""
    start = random.randint(0, len(data))
    stop = min(len(data), start + random.choice((0, 1, 1, 4, 30, 400)))
    flipped = min(start, len(data) - 1)
    return random.choice(
        (
            data[:flipped] + bytes((data[flipped] ^ 1 << random.randrange(8),)) + data[flipped + 1 :] if data else b"x",
            data[:start] + random.choice(CONTROL) + data[start:],
            data[:start] + data[stop:],
            data[:stop] + data[start:stop] * random.choice((1, 2, 100)) + data[stop:],
            data[:start] + random.choice(NUMBERS) + data[stop:],
            data[:start] + random.randbytes(stop - start) + data[stop:],
            data[:start],
        )
    )


def _mutated_bytes(random: Random, data: bytes, corpus: Sequence[Seed], now: float) -> bytes:
    if random.random() < 0.2:  # the beginning of this and the end of another
        other = filled(random.choice(corpus).templates, "other", now)
        return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]
    return _changed(random, data)


def _cut(random: Random, data: bytes, end: End) -> tuple[bytes, ...]:
    if end is End.BREAKS_OFF:
        data = data[: random.randint(0, len(data))]
    if len(data) < 400 and random.random() < 0.05:
        return tuple(bytes((byte,)) for byte in data)
    places = sorted(random.randint(0, len(data)) for _ in range(random.choice((0, 0, 1, 2, 5))))
    pieces = [data[start:stop] for start, stop in zip((0, *places), (*places, len(data)), strict=True)]
    return tuple(piece for piece in pieces if piece)
