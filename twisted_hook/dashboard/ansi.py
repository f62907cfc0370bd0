"""A log's colours as HTML: select-graphic-rendition sequences become classes, everything else of a terminal is gone.

Pure. Whatever the text holds, what comes out is escaped text in ``<span class>``, and no other markup.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from markupsafe import Markup, escape

from twisted_hook.redaction import clean_but_colours

_COLOURS = ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
_SGR = re.compile("\x1b\\[([0-9;:]{0,64})m")
_MARKS = {1: "bold", 2: "dim", 3: "italic", 4: "underline"}
_ENDS = {22: {"bold", "dim"}, 23: {"italic"}, 24: {"underline"}}


@dataclass(frozen=True, slots=True)
class Style:
    """How text is shown from here on."""

    colour: str = ""
    """The name of a foreground colour; empty for the page's own. Backgrounds are left out: they hide text."""
    marks: frozenset[str] = frozenset()

    @property
    def classes(self) -> str:
        return " ".join([*([f"c-{self.colour}"] if self.colour else []), *sorted(f"t-{mark}" for mark in self.marks)])

    @classmethod
    def named(cls, classes: str) -> Style:
        """The style of these classes; others are passed over."""
        names = set(classes.split()[:8])
        colour = next((colour for colour in _COLOURS if f"c-{colour}" in names), "")
        return cls(colour, frozenset(mark for mark in _MARKS.values() if f"t-{mark}" in names))


PLAIN = Style()


@lru_cache(maxsize=8)
def coloured(text: str, style: Style = PLAIN) -> tuple[Markup, Style]:
    """The text as HTML, and the style at its end. Those who read the same piece of a log share the work."""
    shown, classes = [], style.classes
    pieces = _SGR.split(clean_but_colours(text))  # text and parameters by turns
    for place, piece in enumerate(pieces):
        if place % 2:
            style = _after(style, piece)
            classes = style.classes
        elif piece:
            escaped = str(escape(piece))
            shown.append(f'<span class="{classes}">{escaped}</span>' if classes else escaped)
    return Markup("".join(shown)), style  # noqa: S704 - escaped piece by piece; the classes are words of ours


@lru_cache(maxsize=256)
def _after(style: Style, parameters: str) -> Style:
    """The style after a sequence; what it asks for and we do not show is passed over."""
    codes = [int(code[:4] or 0) for code in re.split("[;:]", parameters)]
    place = 0
    while place < len(codes):
        code = codes[place]
        if code in (38, 48):
            colour, place = _extended(codes, place)
            style = replace(style, colour=colour) if code == 38 else style
        else:
            style = _simple(style, code)
            place += 1
    return style


def _simple(style: Style, code: int) -> Style:
    if code == 0:
        return PLAIN
    if code in _MARKS:
        return replace(style, marks=style.marks | {_MARKS[code]})
    if code in _ENDS:
        return replace(style, marks=style.marks - _ENDS[code])
    if code == 39:
        return replace(style, colour="")
    if 30 <= code <= 37 or 90 <= code <= 97:
        return replace(style, colour=_COLOURS[code % 10])
    return style


def _extended(codes: list[int], place: int) -> tuple[str, int]:
    """The nearest of the eight colours to one of a palette or a mixed one, and the place after it."""
    kind = codes[place + 1] if place + 1 < len(codes) else 0
    if kind == 5 and place + 2 < len(codes):
        return _of_palette(codes[place + 2]), place + 3
    if kind == 2 and place + 4 < len(codes):
        return _mixed(*codes[place + 2 : place + 5]), place + 5
    return "", len(codes)


def _of_palette(number: int) -> str:
    if number < 16:
        return _COLOURS[number % 8]
    if number >= 232:  # greys
        return ""
    red, green, blue = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
    return _mixed(red * 51, green * 51, blue * 51)


def _mixed(red: int, green: int, blue: int) -> str:
    limit = max(red, green, blue) * 0.6
    return _COLOURS[(red > limit) + 2 * (green > limit) + 4 * (blue > limit)]
