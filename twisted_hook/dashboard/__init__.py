"""The dashboard: what runs, what happens and what arrived, as pages for people, with buttons for what they want of it.

It holds no rules: it shows what the journal and the apps say, and passes wishes on, as the API does. Who may ask has
been judged before; a page is rendered here, and what has changed since is told to whoever looks at it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote_to_bytes

from klein import Klein
from msgspec.json import encode
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import SEE_OTHER
from twisted.web.resource import IResource

from twisted_hook.api import REVISION, App, Replay, find_app, find_route, seen_through
from twisted_hook.boundaries import Journal
from twisted_hook.changes import Changes
from twisted_hook.console import form_of
from twisted_hook.dashboard.assets import FOREVER, load
from twisted_hook.dashboard.live import Live
from twisted_hook.dashboard.pages import Pages
from twisted_hook.dashboard.views import View, Views
from twisted_hook.hooks import Hook
from twisted_hook.model import Deployment, JournalUnavailable, Refused
from twisted_hook.site import RETRY_AFTER, GuardedRequest
from twisted_hook.streams import Readers

HTML = b"text/html; charset=utf-8"
_TITLES = {400: "That cannot be asked", 404: "Not found", 409: "Not now", 503: "Not available just now"}


class Dashboard:
    """The pages, their files, and the actions of their forms."""

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
        now: Callable[[], float],
    ) -> None:
        """``logs`` is the directory of the deployments' logs; ``now`` gives seconds since the epoch."""
        self._journal = journal
        self._apps = apps
        self._replay = replay
        self._changes = changes
        self._assets = load()
        self._views = Views(journal, apps, logs, hooks=hooks)
        self._pages = Pages(self._assets, now)
        self._live = Live(changes, self._views, self._pages, readers)

    # --- what the console asks

    @staticmethod
    def screen(request: GuardedRequest) -> None:
        """Refuse a request before its body is read, if there is something to say against it."""
        find_route(Dashboard.app, request)

    def resource(self) -> IResource:
        return self.app.resource()

    def login(self, request: GuardedRequest, *, wrong: bool) -> bytes:
        """The page that asks for the token."""
        fault = "That is not the token." if wrong else ""
        return self._pages.page(View("login", "Sign in", given={"fault": fault}), signed_in=False).encode()

    # --- pages

    @app.route("/", methods=["GET"])
    @app.route("/apps/<name>", methods=["GET"])
    @app.route("/deployments/<name>", methods=["GET"])
    @app.route("/deliveries", methods=["GET"])
    @app.route("/deliveries/<name>", methods=["GET"])
    @app.route("/hooks", methods=["GET"])
    async def page(self, request: GuardedRequest, name: str = "") -> bytes:
        path = _path(request)
        place = self._changes.place  # what changes while the page is made is told to it
        view = await self._views.at(path)
        if view is None:
            raise Refused(404, "There is no such page.")
        return self._show(request, view, path=path, place=place)

    @app.route("/apps/<name>/history", methods=["GET"])
    async def history(self, request: GuardedRequest, name: str) -> bytes:
        return self._show(request, await self._views.history(name, _argument(request, b"before") or None))

    @app.route("/deployments/<id>/log", methods=["GET"])
    async def deployment_log(self, request: GuardedRequest, id: str) -> bytes:
        found = await self._views.deployment_named(id)
        return request.answer(self._views.log(found.id).encode(), b"text/plain; charset=utf-8")

    @app.route("/deployments/<id>/log/more", methods=["GET"])
    async def more_of_the_log(self, request: GuardedRequest, id: str) -> bytes:
        """What came after ``?place=``, as HTML; ``?style=`` is the style there, as an earlier answer has named it."""
        found = await self._views.deployment_named(id)
        place, style = _argument(request, b"place"), _argument(request, b"style")
        if not (place.isascii() and place.isdigit() and len(place) <= 15):
            raise Refused(400, "place: must be a whole number")
        piece = self._views.more_of_the_log(found.id, int(place), style)
        told = {"html": str(piece.shown), "start": piece.start, "end": piece.end, "style": piece.style.classes}
        return request.answer(encode(told))

    @app.route("/live", methods=["GET"])
    async def live(self, request: GuardedRequest) -> bytes:
        """Server-sent events: the parts of the page at ``?page=`` that have changed, as HTML."""
        return await self._live.follow(request, _argument(request, b"page"))

    @app.route("/static/<digest>/<name>", methods=["GET"])
    def static(self, request: GuardedRequest, digest: str, name: str) -> bytes:
        asset = self._assets.get(name)
        if asset is None or asset.url != f"/static/{digest}/{name}":
            raise Refused(404, "There is no such file.")
        request.setHeader(b"Cache-Control", FOREVER)
        return request.answer(asset.body, asset.type)

    @app.route("/<path:rest>", methods=["GET"])
    def nowhere(self, request: GuardedRequest, rest: str) -> NoReturn:
        raise Refused(404, "There is no such page.")

    # --- actions

    @app.route("/apps/<name>/deploy", methods=["POST"])
    async def deploy(self, request: GuardedRequest, name: str) -> bytes:
        app = self._views.named(name)
        revision = form_of(request).get("revision", "").strip().lower() or None
        if revision is None:
            return self._begun(request, "deploy", await seen_through(app.deploy(None)))
        if not REVISION.fullmatch(revision):
            raise Refused(400, "A commit is named by 4 to 64 hexadecimal digits.")
        question = f"Deploy the commit {revision[:12]} of {name}, whatever the branch says?"
        if not _is_confirmed(request):
            return self._confirm(request, question, {"revision": revision})
        return self._begun(request, "deploy", await seen_through(app.deploy(revision)))

    @app.route("/apps/<name>/rollback", methods=["POST"])
    async def rollback(self, request: GuardedRequest, name: str) -> bytes:
        app, release = self._views.named(name), form_of(request).get("to") or None
        if not _is_confirmed(request):
            aim = f"release {release}" if release else "the good release before this one"
            return self._confirm(request, f"Put {name} back to {aim}?", {"to": release} if release else {})
        return self._begun(request, "rollback", await seen_through(app.roll_back(release)))

    @app.route("/apps/<name>/<any(pin, unpin, pause, resume):how>", methods=["POST"])
    async def steer(self, request: GuardedRequest, name: str, how: str) -> bytes:
        app = self._views.named(name)
        steer = {"pin": app.pin, "unpin": app.unpin, "pause": app.pause, "resume": app.resume}[how]
        await seen_through(steer())
        self.log.info("{app}: {how}, asked for on the dashboard", app=app.name, how=how)
        return _go_to(request, f"/apps/{app.name}?notice={how}")

    @app.route("/deployments/<id>/cancel", methods=["POST"])
    async def cancel(self, request: GuardedRequest, id: str) -> bytes:
        found = await self._views.deployment_named(id)
        if not _is_confirmed(request):
            return self._confirm(request, f"End this deployment of {found.app}? What runs stays.", {})
        app = find_app(self._apps(), found.app)
        if found.outcome is not None or app is None or not await seen_through(app.cancel(id)):
            raise Refused(409, "The deployment is not under way any more.")
        self.log.info("{app}: deployment {id} is cancelled on the dashboard", app=found.app, id=found.id)
        return _go_to(request, f"/deployments/{found.id}?notice=cancel")

    @app.route("/deliveries/<id>/replay", methods=["POST"])
    async def replay(self, request: GuardedRequest, id: str) -> bytes:
        found = await self._views.delivery_named(id)
        if not _is_confirmed(request):
            return self._confirm(request, "Deploy again what this delivery is for?", {})
        made = await seen_through(self._replay(found.id))
        for each in made:
            self._note(each)
        return _go_to(request, f"/deliveries/{found.id}?notice={'replay' if made else 'nothing'}")

    # --- answers

    @app.handle_errors(Refused, JournalUnavailable)  # type: ignore[arg-type]  # Klein knows no request but its own
    def refuse(self, request: GuardedRequest, failure: Failure) -> bytes:
        """A page that says why: whoever may come here may know."""
        error = failure.value
        if not isinstance(error, Refused):
            error = Refused(503, f"The journal cannot be read or written just now: {error}")
            request.setHeader(b"Retry-After", RETRY_AFTER)
        request.site.tally.note(f"{error.status} on the dashboard")
        request.setResponseCode(error.status)
        title = _TITLES.get(error.status, "That did not work")
        return self._show(request, View("error", title, given={"reason": error.reason, "back": "/"}))

    def _show(self, request: GuardedRequest, view: View, *, path: str = "", place: str = "") -> bytes:
        shown = self._pages.page(
            view, path=path, place=place, csrf=_csrf(request), notice=_argument(request, b"notice")
        )
        return request.answer(shown.encode(), HTML)

    def _confirm(self, request: GuardedRequest, question: str, fields: dict[str, str]) -> bytes:
        """Ask before it is done; a browser with our script has asked already."""
        action = _path(request)
        given = {
            "question": question,
            "action": action,
            "fields": list(fields.items()),
            "back": action.rpartition("/")[0],
        }
        return self._show(request, View("confirm", "Are you sure?", given=given))

    def _begun(self, request: GuardedRequest, notice: str, deployment: Deployment) -> bytes:
        """Show who has asked for a deployment how it goes."""
        self._note(deployment)
        return _go_to(request, f"/deployments/{deployment.id}?notice={notice}")

    def _note(self, deployment: Deployment) -> None:
        self.log.info(
            "{app}: deployment {id} is asked for on the dashboard ({trigger})",
            app=deployment.app,
            id=deployment.id,
            trigger=deployment.trigger.value,
        )


def _path(request: GuardedRequest) -> str:
    """The path that was asked for; a route has matched it, so that it is UTF-8."""
    return unquote_to_bytes(request.path).decode()


def _argument(request: GuardedRequest, name: bytes) -> str:
    values = request.args.get(name, [])
    return values[0].decode("utf-8", "replace") if values else ""


def _csrf(request: GuardedRequest) -> str:
    return request.visitor.csrf if request.visitor is not None else ""


def _is_confirmed(request: GuardedRequest) -> bool:
    return form_of(request).get("confirmed") == "yes"


def _go_to(request: GuardedRequest, url: str) -> bytes:
    """Have the browser look there: what it does again when it is told to reload a page is no action."""
    request.setResponseCode(SEE_OTHER)
    request.setHeader(b"Location", url.encode())
    return request.answer(b"", HTML)
