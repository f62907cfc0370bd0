"""``hookdeploy status``: what runs, what happens now, what failed last, and which secrets have verified when.

Shows what the API says, and nothing else; what comes from a commit or a message is cleaned on its way to a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from twisted_hook.cli.client import Api, app_argument, app_path, running_server, server_options
from twisted_hook.cli.follow import BAD_ENDS, GOOD_ENDS, Answer, commit
from twisted_hook.cli.tables import add, ago, show_tables, span, table_of

if TYPE_CHECKING:
    from rich.table import Table

REMOVABLE = "can be removed"
NEVER = "never"
LOOKED_AT = 30
"""Deployments of an app among which the last one that came to something is looked for."""


@click.command()
@app_argument
@server_options
def status(*, app: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show what runs since when, what happens now and why the last deployment failed, of all apps or of APP.

    And which secrets have verified a delivery. Exits with 3 if no server runs.
    """
    with running_server(config, state, as_json=as_json) as api:
        found = api.get("/apps") if app is None else api.get(app_path(api, app))
        if as_json:
            click.echo(json.dumps(found))
            return
        now = datetime.now(UTC)
        shown = [Shown(each, _newest(api, each)) for each in (found if app is None else [found])]
        if app is not None:
            show_tables(apps_table(shown, now), notes=(*_notes(shown, now), *_kept(found)))
            return
        hooks = api.get("/hooks")
        show_tables(apps_table(shown, now), hooks_table(hooks, now), notes=(*_notes(shown, now), *removal_notes(hooks)))


@dataclass(frozen=True, slots=True)
class Shown:
    """An app, and the newest of its deployments first."""

    app: Answer
    deployments: Sequence[Answer]

    @property
    def running(self) -> Answer | None:
        return next((each for each in self.deployments if each["id"] == self.app["running"]), None)

    @property
    def last_failure(self) -> Answer | None:
        """The last deployment that came to something, if that was nothing good."""
        words = (*BAD_ENDS, "deployed")
        last = next((each for each in self.deployments if each["outcome"] in words), None)
        return None if last is None or last["outcome"] in GOOD_ENDS else last

    @property
    def since(self) -> str | None:
        """Since when it is as it is: its server, or what was deployed where there is none."""
        if self.app["server"]:
            return str(self.app["server"]["since"])
        found = (each for each in self.deployments if each["release"] == self.app["release"])
        return next((str(each["finished_at"]) for each in found if each["outcome"] == "deployed"), None)


def _newest(api: Api, app: Answer) -> Sequence[Answer]:
    found: Sequence[Answer] = api.get("/deployments", app=app["name"], limit=LOOKED_AT)
    return found


# --- tables


def apps_table(apps: Sequence[Shown], now: datetime) -> Table:
    """A row for each app."""
    table = table_of("app", "state", "since", "revision", "subject", "lane", shrinks="subject")
    for each in apps:
        app, since = each.app, each.since
        revision = (app["revision"] or "")[:7]
        add(table, app["name"], _state(app), ago(since, now), revision, app["subject"] or "", _lane(app))
    return table


def _state(app: Answer) -> str:
    if app["server"]:
        return str(app["server"]["state"])
    return "deployed" if app["revision"] else "no release"


def _lane(app: Answer) -> str:
    """What is in its lane, and how a person holds it back; the deployments are named in the notes."""
    told = (("deploys", "running"), ("one waits", "waiting"), ("paused", "paused"), ("pinned", "pinned"))
    return ", ".join(word for word, key in told if app[key])


def _notes(apps: Sequence[Shown], now: datetime) -> Iterator[str]:
    """What happens now, and what is wrong: a line for each."""
    for each in apps:
        name = each.app["name"]
        if each.app["running"]:
            yield f"{name}: deployment {each.app['running']} runs{_progress(each.running, now)}"
        if each.app["waiting"]:
            until = f" until: hookdeploy resume {name}" if each.app["paused"] and not each.app["running"] else ""
            yield f"{name}: deployment {each.app['waiting']} waits{until}"
        if each.app["server"] and each.app["server"]["reason"]:
            yield f"{name}: {each.app['server']['reason']}"
        if each.last_failure is not None:
            yield _failure(each.last_failure, now)


def _progress(deployment: Answer | None, now: datetime) -> str:
    """What it is at, for how long, and which commit it is."""
    if deployment is None:
        return ""
    entered = deployment["phases"][-1]["at"] if deployment["phases"] else deployment["queued_at"]
    length = span((now - datetime.fromisoformat(entered)).total_seconds())
    which = f", {commit(deployment)}" if deployment["revision"] else ""
    return f": {deployment['phase']} for {length} ({deployment['trigger']}){which}"


def _failure(deployment: Answer, now: datetime) -> str:
    reason = deployment["reason"].partition("\n")[0]
    which = f" of {deployment['revision'][:7]}" if deployment["revision"] else ""
    what = f"{deployment['app']}: the last deployment{which} {deployment['outcome'].replace('_', ' ')}"
    when = ago(deployment["finished_at"], now)
    return f"{what} {when}, {deployment['phase']}: {reason} (hookdeploy why {deployment['id']})"


def _kept(app: Answer) -> Iterator[str]:
    for kept in app["kept"]:
        current = " (current)" if kept["current"] else ""
        yield f"keeps {kept['release']}{current} {kept['revision'][:7]} {kept['subject']}"


def hooks_table(hooks: Sequence[Answer], now: datetime) -> Table:
    """A row for each secret; the hook is named in the first of its rows."""
    table = table_of("hook", "path", "forge", "secret", "last verified", "", shrinks="secret")
    for hook in hooks:
        for place, secret in enumerate(hook["secrets"]):
            named = ("", "", "") if place else (hook["name"], hook["path"], hook["forge"])
            at = secret["last_verified_at"]
            removable = REMOVABLE if is_replaced(hook["secrets"], place) else ""
            add(table, *named, secret["source"], ago(at, now) if at else NEVER, removable)
    return table


def is_replaced(secrets: Sequence[Answer], place: int) -> bool:
    """Whether a secret has verified, and a newer one since: newer is what stands further down in the list.

    One that never verified may be the next one, wherever it stands.
    """
    at = secrets[place]["last_verified_at"]
    later = (each["last_verified_at"] for each in secrets[place + 1 :])
    return at is not None and any(other is not None and other > at for other in later)


def removal_notes(hooks: Sequence[Answer]) -> Iterator[str]:
    """What to know before a secret is removed."""
    if any(is_replaced(hook["secrets"], place) for hook in hooks for place in range(len(hook["secrets"]))):
        yield f"{REMOVABLE}: a newer secret has verified since; make sure that every webhook at the forge has that one"
