"""What each page shows, asked of the journal and the apps: a title, and parts that are renewed one by one.

Reads only. A part is a template and what it is given; it knows nothing of requests, sessions or HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twisted_hook.advice import Present, of_delivery, of_deployment, of_silence
from twisted_hook.api import App, find_app, hooks_json
from twisted_hook.boundaries import Journal
from twisted_hook.changes import Change, Kind
from twisted_hook.dashboard import logtail
from twisted_hook.dashboard.ansi import Style
from twisted_hook.dashboard.chart import MOST, chart_of
from twisted_hook.dashboard.phases import passed
from twisted_hook.dashboard.words import EXPLAINED, UNHAPPY, Badge, badge_of, server_badge
from twisted_hook.durations import usual
from twisted_hook.hooks import Hook
from twisted_hook.model import Delivery, Deployment, Outcome, Refused, StepFailed, Tree

NEWEST = 12
"""Deployments and deliveries below the apps."""
LISTED = 25
_DEPLOYMENTS, _DELIVERIES = "newest-deployments", "newest-deliveries"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a page that is shown again when it has changed."""

    template: str
    given: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """One page."""

    template: str
    title: str
    parts: Mapping[str, Part] = field(default_factory=dict)
    """By the ids of their elements."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What the page is given beside its parts; it stays as it is."""


class Views:
    """Makes the pages."""

    def __init__(
        self,
        journal: Journal,
        apps: Callable[[], Iterable[App]],
        logs: Path,
        *,
        hooks: Callable[[], Iterable[Hook]],
    ) -> None:
        self._journal = journal
        self._apps = apps
        self._logs = logs
        self._hooks = hooks
        self._lone = {"": self.overview, "deliveries": self.deliveries, "hooks": self.hooks}
        self._named = {"apps": self.app, "deployments": self.deployment, "deliveries": self.delivery}

    # --- pages

    async def at(self, path: str) -> View | None:
        """The page at a path, if it is one that changes while it is looked at. Raises ``Refused``."""
        match path.strip("/").split("/"):
            case [one] if one in self._lone:
                return await self._lone[one]()
            case [kind, name] if kind in self._named:
                return await self._named[kind](name)
        return None

    async def renewed(self, path: str, *changes: Change) -> Mapping[str, Part]:
        """The parts of the page at a path that show what has changed. Raises ``Refused``; a log goes on by itself."""
        kind, _, name = path.strip("/").partition("/")
        if kind == "":
            return await self._overview_parts({part for each in changes for part in await self._touched(each)})
        for change in changes:
            if await self._concerns(kind, name, change):
                view = await self.at(path)
                return view.parts if view is not None else {}
        return {}

    async def _concerns(self, kind: str, name: str, change: Change) -> bool:
        """Whether a page of this kind about this may look otherwise after a change."""
        if kind == "apps" and change.kind is Kind.DEPLOYMENT:
            found = await self._journal.deployment(change.id)
            return found is not None and found.app == name
        if kind == "deliveries" and change.kind is Kind.DEPLOYMENT:
            return True
        its = {"apps": Kind.APP, "deployments": Kind.DEPLOYMENT}.get(kind, Kind.DELIVERY)
        return change == Change(its, name or change.id)

    async def _touched(self, change: Change) -> Collection[str]:
        """The parts of the overview that show what has changed."""
        if change.kind is Kind.APP:
            return {_card(change.id)}
        if change.kind is Kind.DELIVERY:
            return {_DELIVERIES}
        found = await self._journal.deployment(change.id)
        return {_DEPLOYMENTS, _DELIVERIES, *([_card(found.app)] if found is not None else [])}

    async def overview(self) -> View:
        cards = [_card(app.name) for app in self._apps()]
        parts = await self._overview_parts({*cards, _DEPLOYMENTS, _DELIVERIES})
        return View("overview", "Apps", parts, {"cards": [card for card in cards if card in parts]})

    async def _overview_parts(self, wanted: Collection[str]) -> Mapping[str, Part]:
        apps = [app for app in self._apps() if _card(app.name) in wanted]
        parts = {_card(app.name): Part("card", await self._state(app, await self._history(app.name))) for app in apps}
        if _DEPLOYMENTS in wanted:
            given = {"deployments": await self._journal.deployments(limit=NEWEST), "with_app": True}
            parts[_DEPLOYMENTS] = Part("deployments", given)
        if _DELIVERIES in wanted:
            parts[_DELIVERIES] = Part(
                "deliveries", {"deliveries": await self._deliveries(limit=NEWEST), "with_replay": False}
            )
        return parts

    async def app(self, name: str) -> View:
        app = self.named(name)
        history = await self._history(name)
        state = await self._state(app, history)
        parts = {
            "state": Part("state", state),
            "steering": Part("steering", state),
            "chart": Part("chart", {"chart": chart_of(history)}),
            "releases": Part("releases", {**state, "kept": await _kept(app)}),
            "history": Part("deployments", {"deployments": history[:LISTED], "with_app": False}),
        }
        return View("app", name, parts, {"app": app, "older": _older(history[:LISTED])})

    async def history(self, name: str, before: str | None) -> View:
        """The deployments of an app before one of them; what is written there does not change any more."""
        app = self.named(name)
        found = await self._journal.deployments(app=name, limit=LISTED, before=before)
        given = {"app": app, "older": _older(found)}
        return View(
            "history",
            f"History of {name}",
            {"history": Part("deployments", {"deployments": found, "with_app": False})},
            given,
        )

    async def deployment(self, id: str) -> View:
        found = await self.deployment_named(id)
        app = find_app(self._apps(), found.app)
        history = await self._history(found.app)
        present = _present(await self._state(app, history)) if app is not None else Present()
        given = {
            "deployment": found,
            "badge": badge_of(found),
            "passed": passed(found, usual(history, like=found)),
            "link": commit_link(app, found.revision),
            "advice": of_deployment(found, present) if found.outcome in EXPLAINED else None,
            "configured": app is not None,
        }
        parts = {
            "progress": Part("progress", given),
            "steps": Part("steps", {"steps": found.steps}),
            "ending": Part("ending", given),
        }
        tail = logtail.tail(self._logs, found.id)
        return View("deployment", f"{found.app}: deployment {found.id}", parts, {**given, "tail": tail})

    async def deliveries(self) -> View:
        shown = await self._deliveries(limit=LISTED)
        parts = {"deliveries": Part("deliveries", {"deliveries": shown, "with_replay": True})}
        return View("deliveries", "Deliveries", parts, {"silence": of_silence()})

    async def delivery(self, id: str) -> View:
        found = await self.delivery_named(id)
        given = {"delivery": found, "deployments": await self._led_to(found, {}), "advice": of_delivery(found)}
        parts = {"delivery": Part("delivery", given)}
        return View("delivery", f"Delivery {found.id}", parts, {"delivery": found})

    async def hooks(self) -> View:
        shown = await hooks_json(self._journal, self._hooks())
        return View("hooks", "Hooks", {"hooks": Part("hooks", {"hooks": shown})})

    # --- what they are made of

    def named(self, name: str) -> App:
        found = find_app(self._apps(), name)
        if found is None:
            raise Refused(404, f"There is no app {name}.")
        return found

    async def deployment_named(self, id: str) -> Deployment:
        found = await self._journal.deployment(id)
        if found is None:
            raise Refused(404, f"There is no deployment {id}.")
        return found

    async def delivery_named(self, id: str) -> Delivery:
        found = await self._journal.delivery(id)
        if found is None:
            raise Refused(404, f"There is no delivery {id}.")
        return found

    def log(self, deployment: str) -> str:
        """All of a deployment's log, without colours."""
        return logtail.whole(self._logs, deployment)

    def more_of_the_log(self, deployment: str, place: int, style: str) -> logtail.Piece:
        """What came after a place in it, where the style was this one."""
        return logtail.since(self._logs, deployment, place, Style.named(style))

    async def _history(self, app: str) -> Sequence[Deployment]:
        """The newest deployments of an app, as many as tell what is usual there."""
        return await self._journal.deployments(app=app, limit=MOST)

    async def _state(self, app: App, history: Sequence[Deployment]) -> dict[str, Any]:
        """What an app is at, what happens to it, and why its last deployment failed if it did."""
        serving = app.server.launch.tree if app.server and app.server.launch else None
        good = await self._journal.last_good(app.name, serving.release if serving else None)
        commit = serving.commit if serving else good
        running = await self._present(app.lane.running)
        return {
            "app": app,
            "badge": _badge(app, running, commit is not None),
            "status": app.server.status if app.server else None,
            "commit": commit,
            "link": commit_link(app, commit.revision if commit else None),
            "release": serving.release if serving else (good.release if good else None),
            "since": good,
            "running": running,
            "usual": sum(usual(history, like=running).values()) if running else 0.0,
            "waiting": await self._present(app.lane.waiting),
            "failed": _last_failure(history),
            "steering": await app.steering(),
        }

    async def _present(self, deployment: Deployment | None) -> Deployment | None:
        """A deployment in a lane, as the journal has it by now."""
        return None if deployment is None else await self._journal.deployment(deployment.id) or deployment

    async def _deliveries(self, limit: int) -> list[tuple[Delivery, list[Deployment]]]:
        deliveries = await self._journal.deliveries(limit=limit)
        # All at once: one question for each would keep everybody who looks waiting.
        newest = {each.id: each for each in await self._journal.deployments(limit=2 * limit)}
        return [(each, await self._led_to(each, newest)) for each in deliveries]

    async def _led_to(self, delivery: Delivery, known: Mapping[str, Deployment]) -> list[Deployment]:
        found = [known.get(each) or await self._journal.deployment(each) for each in delivery.deployments]
        return [each for each in found if each is not None]


def commit_link(app: App | None, revision: str | None) -> str | None:
    """Where the configured repository's forge shows a commit; nothing that a payload says goes into it."""
    repository = app.repository if app is not None else None
    if not repository or not revision or not repository.startswith("https://"):
        return None
    url = urlsplit(repository)
    if not url.hostname or url.username or url.query or url.fragment:
        return None
    kind = "commits" if url.hostname == "bitbucket.org" else "commit"
    return f"https://{url.netloc}{url.path.rstrip('/').removesuffix('.git')}/{kind}/{revision}"


async def _kept(app: App) -> Sequence[Tree]:
    try:
        return await app.kept()
    except StepFailed:  # git cannot tell; all else is known
        return ()


def _card(app: str) -> str:
    return f"app-{app}"


def _older(shown: Sequence[Deployment]) -> str | None:
    """Before which deployment the next page of a history begins, if there may be one."""
    return shown[-1].id if len(shown) == LISTED else None


def _present(state: Mapping[str, Any]) -> Present:
    """What an app is at, as far as that changes what to do."""
    app, commit, steering, status = state["app"], state["commit"], state["steering"], state["status"]
    return Present(
        revision=commit.revision if commit else None,
        subject=commit.subject if commit else None,
        state=status.state if status else None,
        problem=status.reason if status else "",
        paused=steering.paused,
        pinned=steering.pinned,
        repository=app.repository,
    )


def _badge(app: App, running: Deployment | None, deployed: bool) -> Badge:
    """The one word for an app: what its server does, and that it is deployed."""
    if app.server is not None and (deployed or running is None):
        return server_badge(app.server.status)
    if deployed:
        return Badge("good", "✓", "deployed")
    return Badge("idle", "○", "nothing deployed yet")


def _last_failure(history: Sequence[Deployment]) -> Deployment | None:
    """The last deployment that came to an end of its own, if that was a bad one."""
    idle = {None, Outcome.SUPERSEDED, Outcome.UNCHANGED, Outcome.CANCELLED}
    last = next((each for each in history if each.outcome not in idle), None)
    return last if last is not None and last.outcome in UNHAPPY else None
