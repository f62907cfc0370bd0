"""Makes outside text fit to be shown: secrets masked by value, control bytes made harmless.

Pure. It never decides what is a secret; the configuration tells it. Streams give the same text however they are cut.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable

MASK = "[secret]"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# ECMA-48: a control sequence, an operating system command (a title, a link), and every other sequence. Their lengths
# are limited, so that a stream need not hold back more than that.
_CSI = r"\[[0-?]{0,64}[ -/]{0,8}"
_OSC = r"\][^\x07\x1b\r\n]{0,2048}"
_OTHER = r"[ -/]{0,8}"
_ESCAPE_SEQUENCE = re.compile(rf"\x1b(?:{_CSI}[@-~]|{_OSC}(?:\x07|\x1b\\)|{_OTHER}[0-~])")
_COLOUR = re.compile(r"\x1b\[[0-9;:]{0,64}m")
"""Select graphic rendition: how what follows is to look, and nothing else."""
_COLOUR_BYTES = re.compile(_COLOUR.pattern.encode())
_BEGUN_COLOUR = re.compile(rb"\x1b(?:\[[0-9;:]{0,64})?\Z")
_LONGEST_BEGUN = 66
_MOST_COLOURS = 4096
"""Bytes of colours within what may be a secret, for which a stream waits for more of it."""
_UNFINISHED = re.compile(rf"\r\Z|\x1b(?:{_CSI}|{_OSC}\x1b?|{_OTHER})\Z")


def clean(text: str) -> str:
    """The text without escape sequences, control characters and direction overrides; tabs and newlines stay."""
    text = _ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def clean_but_colours(text: str) -> str:
    """The same, with the escape sequences that only say how text is to look; ``colourless`` takes them out."""
    colours = (*_COLOUR.findall(text), "")
    return "".join(clean(part) + colour for part, colour in zip(_COLOUR.split(text), colours, strict=True))


def colourless(text: str) -> str:
    """What ``clean_but_colours`` gave, without colours."""
    return _COLOUR.sub("", text)


class CleaningStream:
    """Decodes and cleans a stream, also the characters and escape sequences that are split across chunks."""

    def __init__(self, clean: Callable[[str], str] = clean) -> None:
        self._clean = clean
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def feed(self, data: bytes) -> str:
        """What may be shown of all that came so far and was not shown yet."""
        text = self._rest + self._decoder.decode(data)
        unfinished = _UNFINISHED.search(text)
        end = unfinished.start() if unfinished else len(text)
        self._rest = text[end:]
        return self._clean(text[:end])

    def flush(self) -> str:
        """What was held back, at the end of the stream."""
        text, self._rest = self._rest + self._decoder.decode(b"", final=True), ""
        return self._clean(text)


class Redactor:
    """Masks the given secrets wherever they stand."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # Variables of the environment may hold any bytes: Python keeps those that are no UTF-8 as surrogates.
        self._known = frozenset(secret for secret in secrets if secret)
        known = {secret.encode("utf-8", "surrogateescape") for secret in self._known}
        known |= {MASK.encode()} if known else set()  # so that what is masked can be masked again
        self._secrets = sorted(known, key=len, reverse=True)  # the longest first: a secret may contain another
        self._pattern = re.compile(b"|".join(re.escape(secret) for secret in self._secrets)) if self._secrets else None

    def knowing(self, more: Iterable[str]) -> Redactor:
        """One that masks these too."""
        new = self._known.union(more)
        return self if new == self._known else Redactor(new)

    def mask(self, data: bytes) -> bytes:
        """The data with every secret masked; a colour within one hides it not, and stays."""
        return self._masked(data, lambda plain, start: len(plain))[0]

    def mask_begun(self, data: bytes) -> tuple[bytes, bytes]:
        """The data with every secret masked up to where, at its end, one may have begun; and the rest, as it came."""
        begun = _BEGUN_COLOUR.search(data, max(0, len(data) - _LONGEST_BEGUN))
        end = begun.start() if begun else len(data)  # it is not known yet whether this is text
        shown, rest = self._masked(data[:end], self._begun)
        return shown, rest + data[end:]

    def _masked(self, data: bytes, begun_in: Callable[[bytes, int], int]) -> tuple[bytes, bytes]:
        plain, place = _without_colours(data)
        begun = begun_in(plain, 0)
        shown, position = [], 0
        for found in self._pattern.finditer(plain) if self._pattern else ():
            if found.start() >= begun:
                break
            start, end = place(found.start()), place(found.end())
            shown += [data[position:start], MASK.encode(), *_COLOUR_BYTES.findall(data, start, end)]
            position = end
            if found.end() > begun:
                begun = begun_in(plain, found.end())
        rest = place(begun)
        if len(data) - rest > len(plain) - begun + _MOST_COLOURS:
            rest = len(data)
        return b"".join((*shown, data[position:rest])), data[rest:]

    def text(self, text: str) -> str:
        """The text with every secret masked and every control character made harmless."""
        masked = self.mask(text.encode("utf-8", "replace")).decode("utf-8", "replace")
        shown = clean(masked)  # which may put together what an escape sequence has kept apart
        return shown if shown == masked else self.mask(shown.encode()).decode("utf-8", "replace")

    def stream(self) -> RedactingStream:
        return RedactingStream(self)

    def _begun(self, data: bytes, start: int) -> int:
        """The first position from which on all of the data is the beginning of a secret, and not the whole of it."""
        first = len(data)
        for secret in self._secrets:
            at = data.find(secret[:1], max(start, len(data) - len(secret) + 1), first)
            while at != -1 and not secret.startswith(data[at:]):
                at = data.find(secret[:1], at + 1, first)
            if at != -1:
                first = at
        return first


def _without_colours(data: bytes) -> tuple[bytes, Callable[[int], int]]:
    """The data without colours, and where in the data each place of that is."""
    if b"\x1b" not in data:
        return data, lambda place: place
    places, lengths = [], [0]
    for found in _COLOUR_BYTES.finditer(data):
        places.append(found.start() - lengths[-1])
        lengths.append(lengths[-1] + len(found[0]))
    return _COLOUR_BYTES.sub(b"", data), lambda place: place + lengths[bisect_right(places, place)]


class RedactingStream:
    """Masks secrets in a stream, also those that are split across chunks."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What may be shown of all that came so far and was not shown yet."""
        shown, self._rest = self._redactor.mask_begun(self._rest + data)
        return shown

    def flush(self) -> bytes:
        """What was held back, at the end of the stream: the beginning of a secret, which may contain a shorter one."""
        rest, self._rest = self._rest, b""
        return self._redactor.mask(rest)
