"""``hookdeploy status``: what runs, what waits, and which secret of each hook has verified when.

Shows what the API says, and nothing else; what comes from a commit or a message is cleaned on its way to a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twisted_hook.cli.client import app_path, running_server, server_options
from twisted_hook.cli.follow import Answer
from twisted_hook.redaction import clean

WHOLE = 1000
"""Columns where no terminal has to be fitted: nothing is cut off for who reads it later."""
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))
REMOVABLE = "can be removed"
NEVER = "never"


@click.command()
@click.argument("app", required=False)
@server_options
def status(*, app: str | None, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show what runs and what waits, of all apps or of APP, and which secrets have verified a delivery.

    Exits with 3 if no server runs.
    """
    with running_server(config, state, as_json=as_json) as api:
        found = api.get("/apps") if app is None else api.get(app_path(api, app))
        if as_json:
            click.echo(json.dumps(found))
            return
        now = datetime.now(UTC)
        if app is not None:
            show_tables(apps_table([found], now), notes=(*_notes([found]), *_kept(found)))
            return
        hooks = api.get("/hooks")
        show_tables(apps_table(found, now), hooks_table(hooks, now), notes=(*_notes(found), *removal_notes(hooks)))


# --- tables


def show_tables(*tables: Table, notes: Sequence[str] = ()) -> None:
    """Print them as wide as the terminal is, and whole where there is none; then the notes."""
    width = None if sys.stdout.isatty() else WHOLE
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    for place, table in enumerate(tables):
        if place:
            console.print()
        console.print(table)
    if notes:
        console.print()
    for note in notes:
        console.print(_line(note), soft_wrap=True, no_wrap=False, overflow="ignore")


def _table(*columns: str, shrinks: str) -> Table:
    """A table without a frame, of which one column gives way where the terminal is narrow."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column != shrinks)  # rich narrows what may be wrapped first
    return table


def _line(text: object) -> Text:
    """A text in one line, without what a terminal would obey."""
    return Text(" ".join(clean(str(text)).split()), no_wrap=True, overflow="ellipsis")


def _add(table: Table, *cells: object) -> None:
    table.add_row(*(_line(cell) for cell in cells))


def apps_table(apps: Sequence[Answer], now: datetime) -> Table:
    """A row for each app."""
    table = _table("app", "state", "since", "revision", "subject", "lane", shrinks="subject")
    for app in apps:
        server = app["server"] or {}
        since = ago(server.get("since"), now) if server else ""
        revision = (app["revision"] or "")[:7]
        _add(table, app["name"], _state(app), since, revision, app["subject"] or "", _lane(app))
    return table


def _state(app: Answer) -> str:
    if app["server"]:
        return str(app["server"]["state"])
    return "deployed" if app["revision"] else "no release"


def _lane(app: Answer) -> str:
    """What is in its lane, and how a person holds it back; the deployments are named in the notes."""
    told = (("deploys", "running"), ("one waits", "waiting"), ("paused", "paused"), ("pinned", "pinned"))
    return ", ".join(word for word, key in told if app[key])


def _notes(apps: Sequence[Answer]) -> Iterator[str]:
    for app in apps:
        for key, words in (("running", "runs"), ("waiting", "waits")):
            if app[key]:
                yield f"{app['name']}: deployment {app[key]} {words}"
    yield from _reasons(apps)


def _reasons(apps: Sequence[Answer]) -> Iterator[str]:
    for app in apps:
        if app["server"] and app["server"]["reason"]:
            yield f"{app['name']}: {app['server']['reason']}"


def _kept(app: Answer) -> Iterator[str]:
    for kept in app["kept"]:
        current = " (current)" if kept["current"] else ""
        yield f"keeps {kept['release']}{current} {kept['revision'][:7]} {kept['subject']}"


def hooks_table(hooks: Sequence[Answer], now: datetime) -> Table:
    """A row for each secret; the hook is named in the first of its rows."""
    table = _table("hook", "path", "forge", "secret", "last verified", "", shrinks="secret")
    for hook in hooks:
        for place, secret in enumerate(hook["secrets"]):
            named = ("", "", "") if place else (hook["name"], hook["path"], hook["forge"])
            at = secret["last_verified_at"]
            removable = REMOVABLE if is_replaced(hook["secrets"], place) else ""
            _add(table, *named, secret["source"], ago(at, now) if at else NEVER, removable)
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


def ago(at: str | None, now: datetime) -> str:
    """How long ago a time of the API's was, in one unit."""
    if at is None:
        return ""
    seconds = max(0, int((now - datetime.fromisoformat(at)).total_seconds()))
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), (1, "s"))
    return f"{seconds // size} {unit} ago"
