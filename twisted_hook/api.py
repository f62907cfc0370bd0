"""The API: what runs, what ran and what arrived, and what a person wants of an app, as JSON.

Who may ask is decided before: on the unix socket by its mode, over TCP by the console. It holds no
rules: it shows what the journal and the lanes say, and passes wishes on. What it has begun to pass on is not undone by
a client who hangs up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from klein import Klein
from msgspec import Struct, ValidationError
from msgspec.json import decode, encode
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import ACCEPTED
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from twisted_hook import __version__
from twisted_hook.boundaries import AppServer, Journal
from twisted_hook.changes import Change, Changes, Kind
from twisted_hook.deploymentlog import text_of
from twisted_hook.hooks import JSON, Hook, Secret, media_type
from twisted_hook.model import (
    Delivery,
    Deployment,
    JournalUnavailable,
    Parked,
    Refused,
    Steering,
    StepFailed,
    Tree,
    Verified,
)
from twisted_hook.redaction import colourless
from twisted_hook.site import RETRY_AFTER, GuardedRequest, Limits
from twisted_hook.streams import Feed, Log, LogFeed, Readers, event

T = TypeVar("T")
W = TypeVar("W", bound=Struct)

LONGEST_LIST = 500
LIMITS = Limits(max_body=65_536, refusals=None)
"""What the API's site bears."""
DESCRIPTION = Path(__file__).parent / "openapi.yaml"
REVISION = re.compile("[0-9a-f]{4,64}")
"""The id of a commit, or the beginning of it; git takes no fewer digits than four."""


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
    def tag(self) -> str | None:
        """The pattern of the tags that it deploys instead of a branch."""

    @property
    def repository(self) -> str | None:
        """Where it comes from, as it is configured, without userinfo."""

    @property
    def poll(self) -> float:
        """Seconds between two looks at its remote; 0 for never."""

    @property
    def bind(self) -> str | None:
        """Where it is served; None without a server."""

    @property
    def lane(self) -> Lane: ...

    @property
    def server(self) -> AppServer | None: ...

    async def steering(self) -> Steering: ...

    async def kept(self) -> Sequence[Tree]:
        """The releases that can be put back, the newest first. Raises ``StepFailed``."""

    async def deploy(self, revision: str | None) -> Deployment:
        """Deploy the branch's tip, or this revision."""

    async def roll_back(self, release: str | None) -> Deployment:
        """Put a kept release back, or the good one before the current. Raises ``Refused``."""

    async def pin(self) -> None: ...

    async def unpin(self) -> None: ...

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def cancel(self, deployment: str) -> bool:
        """End a deployment; whether it ran or waited."""


class DeployWish(Struct, forbid_unknown_fields=True):
    """The body of a ``deploy``."""

    revision: str | None = None


class RollbackWish(Struct, forbid_unknown_fields=True):
    """The body of a ``rollback``."""

    to: str | None = None
    """A release."""


class PlainWish(Struct, forbid_unknown_fields=True):
    """The body of what needs none."""


Replay = Callable[[str], Coroutine[Any, Any, Sequence[Deployment]]]
"""Deploys once more what a stored delivery, named by its id, is for. Raises ``Refused``."""

MetricsText = Callable[[str], Coroutine[Any, Any, tuple[bytes, str]]]
"""What Prometheus asks for, and its content type, for what it accepts."""


class Api:
    """Apps, deployments, their logs, and deliveries, under ``/api/v1``: ``GET`` shows them, ``POST`` steers."""

    app = Klein()
    log = Logger()

    def __init__(
        self,
        journal: Journal,
        apps: Callable[[], Iterable[App]],
        logs: Path,
        *,
        replay: Replay,
        hooks: Callable[[], Iterable[Hook]],
        changes: Changes,
        readers: Readers,
        source: Path | None = None,
        metrics: MetricsText | None = None,
        dashboard: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """``logs`` is the directory of the deployments' logs, ``source`` the configuration file, if there is one.

        ``dashboard`` is where its pages are.
        """
        self._journal = journal
        self._apps = apps
        self._logs = logs
        self._replay = replay
        self._hooks = hooks
        self._source = source
        self._metrics = metrics
        self._changes = changes
        self._feed = Feed(changes, self._event, readers)
        self._log_feed = LogFeed(changes, readers)
        self._dashboard = dashboard

    @staticmethod
    def screen(request: GuardedRequest) -> None:
        """Refuse a request before its body is read, if there is something to say against it."""
        find_route(Api.app, request)
        if request.method == b"POST" and request.length != 0 and media_type(request.header) != JSON:
            raise Refused(415, "a body that is no JSON")

    @app.handle_errors(Refused, JournalUnavailable)  # type: ignore[arg-type]  # Klein knows no request but its own
    def refuse(self, request: GuardedRequest, failure: Failure) -> bytes:
        """Say why: whoever may come here may know."""
        error = failure.value
        if not isinstance(error, Refused):
            error = Refused(503, f"the journal is unavailable: {error}")
        if error.status == 503:
            request.setHeader(b"Retry-After", RETRY_AFTER)
        request.site.tally.note(f"{error.status} on the API")
        request.setResponseCode(error.status)
        return request.answer(encode({"error": error.reason}))

    @app.route("/api/v1/server", methods=["GET"])
    def server(self, request: GuardedRequest) -> bytes:
        source = None if self._source is None else str(self._source)
        told = {"version": __version__, "pid": os.getpid(), "config": source, "dashboard": self._dashboard()}
        return request.answer(encode({**told, "place": self._changes.place}))

    @app.route("/api/v1/openapi.yaml", methods=["GET"])
    def description(self, request: GuardedRequest) -> bytes:
        """What all of this is, for programs."""
        return request.answer(DESCRIPTION.read_bytes(), b"application/yaml")

    @app.route("/api/v1/events", methods=["GET"])
    async def events(self, request: GuardedRequest) -> bytes:
        """Every change of an app, a deployment and a delivery, as it happens, as the lists show it."""
        return await self._feed.follow(request)

    @app.route("/metrics", methods=["GET"])
    async def metrics(self, request: GuardedRequest) -> bytes:
        if self._metrics is None:
            raise Refused(404, "nothing is measured here")
        body, content_type = await self._metrics((request.getHeader(b"accept") or b"").decode("latin-1"))
        return request.answer(body, content_type.encode())

    @app.route("/api/v1/apps", methods=["GET"])
    async def apps(self, request: GuardedRequest) -> bytes:
        return request.answer(encode([await self._app(app) for app in self._apps()]))

    @app.route("/api/v1/apps/<name>", methods=["GET"])
    async def app_(self, request: GuardedRequest, name: str) -> bytes:
        return request.answer(encode(await self._app_in_full(self._named(name))))

    @app.route("/api/v1/apps/<name>/deploy", methods=["POST"])
    async def deploy(self, request: GuardedRequest, name: str) -> bytes:
        app, revision = self._named(name), _wish(request, DeployWish).revision
        if revision is not None and not REVISION.fullmatch(revision := revision.lower()):
            raise Refused(400, "revision: must be the id of a commit: 4 to 64 hexadecimal digits")
        return self._begun(request, await seen_through(app.deploy(revision)))

    @app.route("/api/v1/apps/<name>/rollback", methods=["POST"])
    async def rollback(self, request: GuardedRequest, name: str) -> bytes:
        app, release = self._named(name), _wish(request, RollbackWish).to
        return self._begun(request, await seen_through(app.roll_back(release)))

    @app.route("/api/v1/apps/<name>/<any(pin, unpin, pause, resume):how>", methods=["POST"])
    async def steer(self, request: GuardedRequest, name: str, how: str) -> bytes:
        app = self._named(name)
        _wish(request, PlainWish)
        steer = {"pin": app.pin, "unpin": app.unpin, "pause": app.pause, "resume": app.resume}[how]
        await seen_through(steer())
        self.log.info("{app}: {how}, asked for by a person", app=app.name, how=how)
        return request.answer(encode(await self._app_in_full(app)))

    @app.route("/api/v1/hooks", methods=["GET"])
    async def hooks(self, request: GuardedRequest) -> bytes:
        """The hooks in the order of the configuration, with when each of their secrets has verified last."""
        return request.answer(encode(await hooks_json(self._journal, self._hooks())))

    @app.route("/api/v1/deployments", methods=["GET"])
    async def deployments(self, request: GuardedRequest) -> bytes:
        found = await self._journal.deployments(
            app=_argument(request, b"app"), limit=_limit(request), before=_argument(request, b"before")
        )
        return request.answer(encode([deployment_json(each) for each in found]))

    @app.route("/api/v1/deployments/<id>", methods=["GET"])
    async def deployment(self, request: GuardedRequest, id: str) -> bytes:
        return request.answer(encode(deployment_json(await self._deployment(id))))

    @app.route("/api/v1/deployments/<id>/cancel", methods=["POST"])
    async def cancel(self, request: GuardedRequest, id: str) -> bytes:
        _wish(request, PlainWish)
        found = await self._deployment(id)
        app = find_app(self._apps(), found.app)
        if found.outcome is not None or app is None or not await seen_through(app.cancel(id)):
            ended = (await self._deployment(id)).outcome
            raise Refused(409, f"deployment {id} has ended: {ended}" if ended else f"deployment {id} is in no lane")
        self.log.info("{app}: deployment {deployment} is cancelled by a person", app=found.app, deployment=id)
        request.setResponseCode(ACCEPTED)
        return request.answer(encode(deployment_json(await self._deployment(id))))

    @app.route("/api/v1/deployments/<id>/log", methods=["GET"])
    async def deployment_log(self, request: GuardedRequest, id: str) -> bytes:
        """What its commands have printed; with ``follow=1`` also what they print from now on, as events."""
        found = await self._deployment(id)
        file = self._logs / f"{found.id}.log"
        shown = str if _is_asked(request, b"colour") else colourless
        if _is_asked(request, b"follow"):
            return await self._log_feed.follow(request, Log(id, file, partial(self._ended, id), shown))
        return request.answer(shown(text_of(file)).encode(), b"text/plain; charset=utf-8")

    async def _ended(self, id: str) -> dict[str, Any] | None:
        """What a deployment has come to; None while it goes on."""
        found = await self._journal.deployment(id)
        if found is None:  # let go of meanwhile
            return {"outcome": None, "reason": ""}
        return None if found.outcome is None else {"outcome": found.outcome, "reason": found.reason}

    @app.route("/api/v1/deliveries", methods=["GET"])
    async def deliveries(self, request: GuardedRequest) -> bytes:
        return request.answer(
            encode([delivery_json(each) for each in await self._journal.deliveries(limit=_limit(request))])
        )

    @app.route("/api/v1/deliveries/<id>", methods=["GET"])
    async def delivery(self, request: GuardedRequest, id: str) -> bytes:
        found = await self._journal.delivery(id)
        if found is None:
            raise Refused(404, f"there is no delivery {id}")
        return request.answer(encode(delivery_json(found)))

    @app.route("/api/v1/deliveries/<id>/replay", methods=["POST"])
    async def replay(self, request: GuardedRequest, id: str) -> bytes:
        _wish(request, PlainWish)
        made = await seen_through(self._replay(id))
        for each in made:
            self._note(each)
        request.setResponseCode(ACCEPTED)
        return request.answer(encode({"deployments": [deployment_json(each) for each in made]}))

    @app.route("/api/v1/parked", methods=["GET"])
    async def parked(self, request: GuardedRequest) -> bytes:
        newest = (await self._journal.parked())[: _limit(request)]
        return request.answer(encode([parked_json(each) for each in newest]))

    async def _event(self, change: Change) -> bytes | None:
        """What the readers of events are told; an app is shown as in the list of all."""
        match change.kind:
            case Kind.DEPLOYMENT:
                deployment = await self._journal.deployment(change.id)
                return None if deployment is None else event("deployment", deployment_json(deployment))
            case Kind.DELIVERY:
                delivery = await self._journal.delivery(change.id)
                return None if delivery is None else event("delivery", delivery_json(delivery))
            case Kind.APP:
                app = find_app(self._apps(), change.id)
                return None if app is None else event("app", await self._app(app))
            case Kind.LOG:
                return None

    def _named(self, name: str) -> App:
        found = find_app(self._apps(), name)
        if found is None:
            raise Refused(404, f"there is no app {name}")
        return found

    async def _deployment(self, id: str) -> Deployment:
        found = await self._journal.deployment(id)
        if found is None:
            raise Refused(404, f"there is no deployment {id}")
        return found

    def _begun(self, request: GuardedRequest, deployment: Deployment) -> bytes:
        """The answer to who has asked for a deployment."""
        self._note(deployment)
        request.setResponseCode(ACCEPTED)
        request.setHeader(b"Location", f"/api/v1/deployments/{deployment.id}".encode())
        return request.answer(encode(deployment_json(deployment)))

    def _note(self, deployment: Deployment) -> None:
        self.log.info(
            "{app}: deployment {deployment} is asked for by a person ({trigger})",
            app=deployment.app,
            deployment=deployment.id,
            trigger=deployment.trigger.value,
        )

    async def _app_in_full(self, app: App) -> dict[str, Any]:
        """An app with the releases that it could go back to."""
        shown = await self._app(app)
        try:
            kept = await app.kept()
        except StepFailed:  # git cannot tell; all else is known
            kept = ()
        return {**shown, "kept": [_kept_json(tree, current=tree.release == shown["release"]) for tree in kept]}

    async def _app(self, app: App) -> dict[str, Any]:
        launch = app.server.launch if app.server else None
        last = None if launch else await self._journal.last_good(app.name)
        serving = launch.tree if launch else None
        steering = await app.steering()
        return {
            "name": app.name,
            "branch": app.branch,
            "tag": app.tag,
            "poll": app.poll,
            "repository": app.repository,
            "bind": app.bind,
            "release": serving.release if serving else (last.release if last else None),
            "revision": serving.commit.revision if serving else (last.revision if last else None),
            "subject": serving.commit.subject if serving else (last.subject if last else None),
            "server": _server_json(app.server) if app.server else None,
            "running": _id(app.lane.running),
            "waiting": _id(app.lane.waiting),
            "paused": steering.paused,
            "pinned": steering.pinned,
        }


def find_app(apps: Iterable[App], name: str) -> App | None:
    """The app of this name; None if none is configured."""
    return next((app for app in apps if app.name == name), None)


def find_route(app: Klein, request: GuardedRequest) -> None:
    """Refuse a request for which an application has no route, by 404 or 405."""
    try:
        path = unquote_to_bytes(request.path).decode()
        app.url_map.bind("").match(path, method=request.method.decode("ascii"))
    except MethodNotAllowed as error:
        request.setHeader(b"Allow", ", ".join(sorted(error.valid_methods or ())).encode())
        raise Refused(405, "a method that the path does not know") from None
    except (HTTPException, UnicodeDecodeError):
        raise Refused(404, "no such path") from None


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
    first = delivery.pushes[0] if delivery.pushes else None
    return {
        **asdict(delivery),
        "repository": first.repository if first else None,
        "ref": first.ref if first else None,
        "after": first.after if first else None,
        "received_at": _time(delivery.received_at),
    }


async def hooks_json(journal: Journal, hooks: Iterable[Hook]) -> list[dict[str, Any]]:
    """The hooks as the API shows them, with when each of their secrets has verified last; never a secret itself."""
    verified = {(each.hook, each.secret): each for each in await journal.verified()}
    return [_hook_json(hook, verified) for hook in hooks]


def _hook_json(hook: Hook, verified: Mapping[tuple[str, str], Verified]) -> dict[str, Any]:
    secrets = [_secret_json(secret, verified.get((hook.name, secret.name))) for secret in hook.secrets]
    return {"name": hook.name, "path": hook.path, "forge": hook.forge, "secrets": secrets}


def _secret_json(secret: Secret, last: Verified | None) -> dict[str, Any]:
    return {
        "source": secret.source,
        "name": secret.name,
        "last_verified_at": _time(last.at) if last else None,
        "delivery": last.delivery if last else None,
    }


def parked_json(parked: Parked) -> dict[str, Any]:
    """A row that could not be read, as the API shows it; ``row`` is text, as nobody knows what it holds."""
    return {**asdict(parked), "parked_at": _time(parked.parked_at)}


def _kept_json(tree: Tree, *, current: bool) -> dict[str, Any]:
    commit = tree.commit
    return {"release": tree.release, "revision": commit.revision, "subject": commit.subject, "current": current}


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


def _is_asked(request: GuardedRequest, name: bytes) -> bool:
    """Whether an option is on: ``0`` and nothing at all are off."""
    return _argument(request, name) not in (None, "", "0")


def _limit(request: GuardedRequest) -> int:
    given = _argument(request, b"limit")
    if given is None:
        return 50
    if not (given.isascii() and given.isdigit()):
        raise Refused(400, "limit: must be a whole number")
    return max(1, min(int(given[:6]), LONGEST_LIST))


def _wish(request: GuardedRequest, kind: type[W]) -> W:
    """What the body asks for; no body is an empty object."""
    try:
        return decode(request.body or b"{}", type=kind)
    except ValidationError as error:  # it names the key
        raise Refused(400, str(error)) from None
    except ValueError:
        raise Refused(400, "the body is not JSON") from None


def seen_through(work: Coroutine[Any, Any, T]) -> Deferred[T]:
    """What the work gives. It goes on to its end though its caller gives up: Klein cancels whose client hangs up."""
    told: Deferred[T] = Deferred()  # a cancelled one swallows what comes later
    Deferred.fromCoroutine(work).addCallbacks(told.callback, told.errback)
    return told
