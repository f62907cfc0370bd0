"""Tells a page that is looked at what has changed in it: the parts that show what is not as it was, as HTML.

Each part is rendered once for all who look at the same page. It keeps nothing of a reader; ``streams`` paces them.
"""

from __future__ import annotations

from functools import partial

from twisted_hook.changes import Change, Changes, Kind
from twisted_hook.dashboard.pages import Pages
from twisted_hook.dashboard.views import Views
from twisted_hook.model import Refused
from twisted_hook.site import GuardedRequest
from twisted_hook.streams import Feed, Readers, event

REMEMBERED = 16
"""Renderings of one page that are kept: each may have 20 kB, and there are as many pages as readers."""


class Live:
    """The pages that are looked at just now."""

    def __init__(self, changes: Changes, views: Views, pages: Pages, readers: Readers) -> None:
        self._changes = changes
        self._views = views
        self._pages = pages
        self._readers = readers
        self._feeds: dict[str, Feed] = {}
        self._looked_at: dict[str, int] = {}

    async def follow(self, request: GuardedRequest, page: str) -> bytes:
        """Tell of the page at this path. Raises ``Refused`` if there is none, or no room for one more reader."""
        if await self._views.at(page) is None:
            raise Refused(404, "There is no such page.")
        if page not in self._feeds:
            told = partial(self._told, page)
            self._feeds[page] = Feed(self._changes, told, self._readers, remembered=REMEMBERED, together=True)
        feed = self._feeds[page]
        self._looked_at[page] = self._looked_at.get(page, 0) + 1
        try:
            return await feed.follow(request)
        finally:
            self._looked_at[page] -= 1
            if not self._looked_at[page]:
                del self._looked_at[page], self._feeds[page]

    async def _told(self, page: str, *changes: Change) -> bytes | None:
        """The parts of a page that show what has changed, each once; of a log only that there is more of it."""
        grown = any(change.kind is Kind.LOG and page == f"/deployments/{change.id}" for change in changes)
        told = event("log", {}) if grown else b""
        others = [change for change in changes if change.kind is not Kind.LOG]
        try:
            shown = self._pages.parts(await self._views.renewed(page, *others))
        except Refused:  # the app is not configured any more, or the row has gone
            return event("reset", {})
        parts = event("parts", [str(each) for each in shown.values()]) if shown else b""
        return b"\n".join(filter(None, (told, parts))) or None
