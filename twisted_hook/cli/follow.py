"""A deployment on its way, as a person sees it: each phase as it begins, how long it took, and what became of it.

Only looks on: whatever happens here, the deployment goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted_hook.cli.client import Api, ApiError, NotRunning
from twisted_hook.redaction import clean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

LOOK = 0.1
"""Seconds between two looks."""
AWAY = 20.0
"""Seconds for which the server may be gone meanwhile: one that is restarted takes up what it was at."""
GOOD_ENDS = ("deployed", "unchanged")
BAD_ENDS = ("failed", "rolled_back", "interrupted")

LOOKED_AT = 50
"""Deployments of an app from which it is told what is usual."""

Answer = Mapping[str, Any]
"""A deployment, a delivery or an app, as the API tells of it."""
Usual = Mapping[str, float]
"""Seconds that phases usually take."""


def follow(api: Api, deployment: Answer, tell: Callable[[Answer], None]) -> Answer:
    """The deployment at its end, or that of the one which has superseded it; ``tell`` is given what each look shows."""
    while True:
        tell(deployment)
        if deployment["outcome"] is None:
            time.sleep(LOOK)
            deployment = look(api, deployment["id"])
        elif deployment["superseded_by"]:
            deployment = look(api, deployment["superseded_by"])
        else:
            return deployment


def look(api: Api, id: str) -> Answer:
    """The deployment as it is now; a server that is away is waited for. Raises as ``Api.get`` does."""
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
    """A line for each phase, which ends with how long it took, and how long it usually takes.

    On a terminal what it is at turns below them; elsewhere a line begins with its phase, so that nothing moves.
    """

    def __init__(self, say: Console, usual: Callable[[Answer], Usual] = lambda deployment: {}) -> None:
        """``usual`` gives the usual seconds of the phases of a deployment such as this one."""
        self._say = say
        self._ask_usual = usual
        self._usual: Usual = {}
        self._told: list[tuple[str, datetime]] = []
        self._in_a_line = False
        self._turning: Status | None = None
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
        if self._turning is not None:
            self._turning.update(self._at_work())

    def end_line(self) -> None:
        """Nothing more is told."""
        if self._turning is not None:
            self._turning.stop()
            self._turning = None
        if self._in_a_line:
            self._say.print()
            self._in_a_line = False

    def _head(self, deployment: Answer, *, superseded: bool) -> None:
        if superseded:
            self._say.print("  superseded by a newer one, which does its work:")
        what = "rollback" if deployment["trigger"] == "rollback" else "deployment"
        self._say.print(clean(f"{deployment['app']}: {what} {deployment['id']}"))
        self._told = []
        self._usual = self._ask_usual(deployment)

    def _mark(self, phase: str, at: datetime) -> None:
        """End the line of the phase before, and begin that of this one."""
        if self._told:
            before, since = self._told[-1]
            begun = "" if self._in_a_line else _begun(before)
            self._say.print(f"{begun}{(at - since).total_seconds():8.2f} s{self._usually(before)}")
            self._in_a_line = False
        self._told.append((phase, at))
        if not phase:
            self.end_line()
        elif self._say.is_terminal:
            self._turning = self._turning or self._turn()
        else:
            self._say.print(_begun(phase), end="")
            self._say.file.flush()
            self._in_a_line = True

    def _usually(self, phase: str) -> str:
        return f"   usually {self._usual[phase]:.2f} s" if phase in self._usual else ""

    def _turn(self) -> Status:
        turning = self._say.status(self._at_work())
        turning.start()
        return turning

    def _at_work(self) -> str:
        phase, since = self._told[-1]
        seconds = max(0.0, (datetime.now(UTC) - since).total_seconds())
        return f"{phase:<10}{seconds:7.0f} s{self._usually(phase)}"


def _begun(phase: str) -> str:
    return f"  {phase:<10}"


def usual_of(api: Api, deployment: Answer) -> Usual:
    """The usual seconds of each phase of such a deployment; nothing where that cannot be told."""
    from twisted_hook.cli.answers import deployment_of
    from twisted_hook.durations import usual

    try:
        found = api.get("/deployments", app=deployment["app"], limit=LOOKED_AT)
    except (NotRunning, ApiError):  # it is a nicety
        return {}
    return {
        str(phase): each for phase, each in usual(map(deployment_of, found), like=deployment_of(deployment)).items()
    }


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
    seconds = seconds_of(deployment)
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


def seconds_of(deployment: Answer) -> float:
    """How long a deployment that has ended took, its waiting included."""
    begun, ended = (datetime.fromisoformat(deployment[key]) for key in ("queued_at", "finished_at"))
    return float((ended - begun).total_seconds())
