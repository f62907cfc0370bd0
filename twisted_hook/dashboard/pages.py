"""Makes HTML of what a page shows. All text is outside text: Jinja2 escapes it, and it is cleaned as for a terminal.

Pure but for the clock that it is given: no template reads anything, and none marks a text as safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from twisted_hook import __version__
from twisted_hook.dashboard import words
from twisted_hook.dashboard.assets import Asset
from twisted_hook.dashboard.views import Part, View
from twisted_hook.redaction import clean


class Pages:
    """Renders views."""

    def __init__(self, assets: Mapping[str, Asset], now: Callable[[], float]) -> None:
        self._now = now
        self._templates = Environment(
            loader=PackageLoader("twisted_hook.dashboard"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            finalize=_fit,
        )
        self._templates.globals.update(
            version=__version__, assets=assets, badge_of=words.badge_of, verdict_badge=words.verdict_badge
        )
        self._templates.filters.update(
            ago=lambda at: words.ago(at, now()),
            branch=words.branch_of,
            full=words.full,
            iso=words.iso,
            line=_line,
            short=words.short,
            took=words.took,
            trigger=words.trigger_words,
        )

    def page(
        self,
        view: View,
        *,
        path: str = "",
        place: str = "",
        csrf: str = "",
        notice: str = "",
        signed_in: bool = True,
    ) -> str:
        """A whole page. ``csrf`` goes into its forms; ``notice`` names one of ``words.NOTICES``.

        ``place`` is the place among the changes that it shows.
        """
        return self._templates.get_template(f"{view.template}.html").render(
            {
                **view.given,
                "title": view.title,
                "parts": self.parts(view.parts, csrf=csrf),
                "path": path,
                "live": path if place else "",
                "place": place,
                "csrf": csrf,
                "notice": words.NOTICES.get(notice, ""),
                "signed_in": signed_in,
                "now": self._now(),
            }
        )

    def parts(self, parts: Mapping[str, Part], *, csrf: str = "") -> dict[str, Markup]:
        """Parts of a page; those that all readers are sent have no ``csrf``, which the script puts in."""
        return {
            name: Markup(  # noqa: S704 - a template's output
                self._templates.get_template(f"parts/{part.template}.html").render(
                    {**part.given, "id": name, "csrf": csrf, "now": self._now()}
                )
            )
            for name, part in parts.items()
        }


def _fit(value: object) -> object:
    """Each value on its way into a page: None is an error of ours, and text is cleaned."""
    return clean(value) if type(value) is str else value


def _line(text: str | None, most: int = 200) -> str:
    """The first line of a text, cut where it is too long to be one."""
    first = next(iter(clean(text or "").strip().splitlines()), "")
    return first if len(first) <= most else first[: most - 1] + "…"
