"""The API: what runs, what ran and what arrived, as JSON, on the unix socket in the state directory.

Only reads so far; the mode of the socket is its guard. It holds no rules: it shows what the journal and the lanes say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from klein import Klein
from msgspec.json import encode
from twisted.logger import Logger

from twisted_hook import __version__
from twisted_hook.boundaries import AppServer, Journal
from twisted_hook.model import Delivery, Deployment, Outcome, Refused
from twisted_hook.site import GuardedRequest

LONGEST_LIST = 500


class Lane(Protocol):
    """What the API shows of an app's lane."""

    @property
    def running(self) -> Deployment | None: ...

    @property
    def waiting(self) -> Deployment | None: ...


class App(Protocol):
    """What the API shows of an app."""

    @property
    def name(self) -> str: ...

    @property
    def branch(self) -> str | None: ...

    @property
    def bind(self) -> str | None:
        """Where it is served; None without a server."""

    @property
    def lane(self) -> Lane: ...

    @property
    def server(self) -> AppServer | None: ...


class Api:
    """``GET`` of apps, deployments, their logs, and deliveries, under ``/api/v1``."""

    app = Klein()
    log = Logger()

    def __init__(
        self, journal: Journal, apps: Callable[[], Iterable[App]], logs: Path, *, source: Path | None = None
    ) -> None:
        """``logs`` is the directory of the deployments' logs, ``source`` the configuration file, if there is one."""
        self._journal = journal
        self._apps = apps
        self._logs = logs
        self._source = source

    @staticmethod
    def screen(request: GuardedRequest) -> None:
        """Refuse a request before its body is read, if there is something to say against it."""
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"Allow", b"GET")
            raise Refused(405, "a method other than GET")

    @app.route("/api/v1/server", methods=["GET"])
    def server(self, request: GuardedRequest) -> bytes:
        source = None if self._source is None else str(self._source)
        return request.answer(encode({"version": __version__, "pid": os.getpid(), "config": source}))

    @app.route("/api/v1/apps", methods=["GET"])
    async def apps(self, request: GuardedRequest) -> bytes:
        return request.answer(encode([await self._app(app) for app in self._apps()]))

    @app.route("/api/v1/apps/<name>", methods=["GET"])
    async def app_(self, request: GuardedRequest, name: str) -> bytes:
        found = next((app for app in self._apps() if app.name == name), None)
        return _one(request, None if found is None else await self._app(found))

    @app.route("/api/v1/deployments", methods=["GET"])
    async def deployments(self, request: GuardedRequest) -> bytes:
        found = await self._journal.deployments(
            app=_argument(request, b"app"), limit=_limit(request), before=_argument(request, b"before")
        )
        return request.answer(encode([deployment_json(each) for each in found]))

    @app.route("/api/v1/deployments/<id>", methods=["GET"])
    async def deployment(self, request: GuardedRequest, id: str) -> bytes:
        found = await self._journal.deployment(id)
        return _one(request, None if found is None else deployment_json(found))

    @app.route("/api/v1/deployments/<id>/log", methods=["GET"])
    async def deployment_log(self, request: GuardedRequest, id: str) -> bytes:
        found = await self._journal.deployment(id)
        if found is None:
            return _one(request, None)
        file = self._logs / f"{found.id}.log"
        return request.answer(file.read_bytes() if file.exists() else b"", b"text/plain; charset=utf-8")

    @app.route("/api/v1/deliveries", methods=["GET"])
    async def deliveries(self, request: GuardedRequest) -> bytes:
        return request.answer(
            encode([delivery_json(each) for each in await self._journal.deliveries(limit=_limit(request))])
        )

    @app.route("/api/v1/deliveries/<id>", methods=["GET"])
    async def delivery(self, request: GuardedRequest, id: str) -> bytes:
        found = await self._journal.delivery(id)
        return _one(request, None if found is None else delivery_json(found))

    async def _app(self, app: App) -> dict[str, Any]:
        launch = app.server.launch if app.server else None
        last = None if launch else await self._last_deployed(app.name)
        serving = launch.tree if launch else None
        return {
            "name": app.name,
            "branch": app.branch,
            "bind": app.bind,
            "release": serving.release if serving else (last.release if last else None),
            "revision": serving.commit.revision if serving else (last.revision if last else None),
            "subject": serving.commit.subject if serving else (last.subject if last else None),
            "server": _server_json(app.server) if app.server else None,
            "running": _id(app.lane.running),
            "waiting": _id(app.lane.waiting),
        }

    async def _last_deployed(self, app: str) -> Deployment | None:
        """What an app without a server is at."""
        found = await self._journal.deployments(app=app, limit=LONGEST_LIST)
        return next((each for each in found if each.outcome is Outcome.DEPLOYED), None)


def deployment_json(deployment: Deployment) -> dict[str, Any]:
    """A deployment as the API shows it: times are RFC 3339, UTC."""
    return {
        **asdict(deployment),
        "queued_at": _time(deployment.queued_at),
        "started_at": _time(deployment.started_at),
        "finished_at": _time(deployment.finished_at),
        "steps": [{**asdict(step), "started_at": _time(step.started_at)} for step in deployment.steps],
        "phases": [{"phase": phase, "at": _time(at)} for phase, at in deployment.phases],
    }


def delivery_json(delivery: Delivery) -> dict[str, Any]:
    """A delivery as the API shows it: times are RFC 3339, UTC."""
    return {**asdict(delivery), "received_at": _time(delivery.received_at)}


def _server_json(server: AppServer) -> dict[str, Any]:
    return {**asdict(server.status), "since": _time(server.status.since)}


def _time(at: float | None) -> str | None:
    return (
        None
        if at is None
        else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )


def _id(deployment: Deployment | None) -> str | None:
    return None if deployment is None else deployment.id


def _argument(request: GuardedRequest, name: bytes) -> str | None:
    values = request.args.get(name, [])
    return values[0].decode("utf-8", "replace") if values else None


def _limit(request: GuardedRequest) -> int:
    given = _argument(request, b"limit")
    if given is None or not (given.isascii() and given.isdigit()):
        return 50
    return max(1, min(int(given[:6]), LONGEST_LIST))


def _one(request: GuardedRequest, found: dict[str, Any] | None) -> bytes:
    if found is None:
        return request.refuse(Refused(404, "no such thing"))
    return request.answer(encode(found))
