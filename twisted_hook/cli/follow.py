"""A deployment on its way, as a person sees it: each phase as it begins, how long it took, and what became of it.

Only looks on: whatever happens here, the deployment goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from twisted_hook.cli.client import Api, ApiError, NotRunning
from twisted_hook.redaction import clean

LOOK = 0.1
"""Seconds between two looks."""
AWAY = 20.0
"""Seconds for which the server may be gone meanwhile: one that is restarted takes up what it was at."""
GOOD_ENDS = ("deployed", "unchanged")

Answer = Mapping[str, Any]
"""A deployment or an app, as the API tells of it."""


def follow(api: Api, deployment: Answer, tell: Callable[[Answer], None]) -> Answer:
    """The deployment at its end, or that of the one which has superseded it; ``tell`` is given what each look shows."""
    while True:
        tell(deployment)
        if deployment["outcome"] is None:
            time.sleep(LOOK)
            deployment = _look(api, deployment["id"])
        elif deployment["superseded_by"]:
            deployment = _look(api, deployment["superseded_by"])
        else:
            return deployment


def _look(api: Api, id: str) -> Answer:
    limit = time.monotonic() + AWAY
    while True:
        try:
            found: Answer = api.get(f"/deployments/{id}")
        except (NotRunning, ApiError) as error:
            comes_back = not isinstance(error, ApiError) or error.status in (None, 503)
            if not comes_back or time.monotonic() > limit:
                raise
            time.sleep(LOOK)
        else:
            return found


class Progress:
    """A line for each phase, which ends with how long it took."""

    def __init__(self, say: Console) -> None:
        self._say = say
        self._told: list[tuple[str, datetime]] = []
        self._in_a_line = False
        self.newest: Answer = {}
        """The deployment as it was at the last look."""

    def tell(self, deployment: Answer) -> None:
        """Say what is new."""
        before, self.newest = self.newest, deployment
        marks = _marks(deployment)
        if not before or deployment["id"] != before["id"]:
            self._head(deployment, superseded=bool(before))
        elif marks[: len(self._told)] != self._told:
            self.end_line()
            self._say.print("  hookdeploy was restarted, and begins it anew:")
            self._told = []
        for phase, at in marks[len(self._told) :]:
            self._mark(phase, at)

    def end_line(self) -> None:
        if self._in_a_line:
            self._say.print()
            self._in_a_line = False

    def _head(self, deployment: Answer, *, superseded: bool) -> None:
        if superseded:
            self._say.print("  superseded by a newer one, which does its work:")
        what = "rollback" if deployment["trigger"] == "rollback" else "deployment"
        self._say.print(clean(f"{deployment['app']}: {what} {deployment['id']}"))
        self._told = []

    def _mark(self, phase: str, at: datetime) -> None:
        """End the line of the phase before, and begin that of this one."""
        if self._told:
            self._say.print(f"{(at - self._told[-1][1]).total_seconds():8.2f} s")
            self._in_a_line = False
        if phase:
            self._say.print(f"  {phase:<10}", end="")
            self._say.file.flush()
            self._in_a_line = True
        self._told.append((phase, at))


def _marks(deployment: Answer) -> list[tuple[str, datetime]]:
    """Each phase and when it began; at the end a nameless one, if there is an end."""
    marks = [("queued", deployment["queued_at"])]
    marks += [(entered["phase"], entered["at"]) for entered in deployment["phases"] if entered["phase"] != "done"]
    if deployment["outcome"] is not None:
        marks.append(("", deployment["finished_at"]))
    return [(phase, datetime.fromisoformat(at)) for phase, at in marks]


def good_end(deployment: Answer) -> str:
    """What became of a deployment that ended well, in a line."""
    if deployment["outcome"] == "unchanged":
        return clean(f"unchanged: {deployment['reason']}")
    seconds = _seconds(deployment)
    return clean(f"deployed {commit(deployment)} as release {deployment['release']} in {seconds:.2f} s")


def bad_end(deployment: Answer, app: Answer, state: Path) -> str:
    """Why a deployment did not become the site, what is the site instead, and where its output is."""
    reason = f": {deployment['reason']}" if deployment["reason"] else ""
    log = state / "logs" / f"{deployment['id']}.log"
    return clean(f"{deployment['outcome']}{reason}\n{still_there(app)}\nIts output is in {log}")


def still_there(app: Answer) -> str:
    """What an app is at now."""
    if app["revision"] is None:
        return f"Nothing of {app['name']} was deployed yet."
    server = app["server"]
    if server is None:
        return f"{app['name']} stays at {commit(app)}."
    if server["state"] == "serving":
        return f"{app['name']} still serves {commit(app)}."
    return f"The server of {app['name']} is {server['state']}, with {commit(app)}. {server['reason']}".rstrip()


def commit(found: Answer) -> str:
    """The commit of a deployment or an app, as a person knows it."""
    return f"{(found['revision'] or '')[:7]} {found['subject'] or ''}".strip()


def _seconds(deployment: Answer) -> float:
    begun, ended = (datetime.fromisoformat(deployment[key]) for key in ("queued_at", "finished_at"))
    return (ended - begun).total_seconds()
