"""``hookdeploy history`` and ``deliveries``: what ran, and what arrived."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from twisted_hook.cli.client import app_argument, app_meant, running_server, server_options
from twisted_hook.cli.follow import Answer, seconds_of
from twisted_hook.cli.tables import ROOMY, add, ago, console_of, show_tables, table_of

if TYPE_CHECKING:
    from rich.table import Table

limit_option = click.option(
    "--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="How many, the newest first."
)


@click.command()
@app_argument
@limit_option
@server_options
def history(*, app: str | None, limit: int, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show what was deployed, of all apps or of APP: when, which commit, why, and what came of it.

    hookdeploy why ID says more of one, and hookdeploy log ID all.
    """
    with running_server(config, state, as_json=as_json) as api:
        of_app = {} if app is None else {"app": app_meant(api, app)}
        found = api.get("/deployments", limit=limit, **of_app)
        if as_json:
            click.echo(json.dumps(found))
        elif not found:
            click.echo("Nothing was deployed yet.")
        else:
            show_tables(history_table(found, datetime.now(UTC), console_of().width))


def history_table(deployments: Sequence[Answer], now: datetime, width: int) -> Table:
    """A row for each; in a narrow terminal what it was for and what took it there give way to why it failed."""
    if width >= ROOMY:
        return _in_full(deployments, now)
    table = table_of("id", "when", "app", "revision", "outcome", "subject, or why", shrinks="subject, or why")
    for each in deployments:
        went_well = each["outcome"] in (None, "deployed")  # then the reason is why it was begun, which gives way
        what = (not went_well and _first_line(each["reason"])) or each["subject"] or ""
        add(table, each["id"], ago(each["queued_at"], now), each["app"], _short(each), _outcome(each), what)
    return table


def _in_full(deployments: Sequence[Answer], now: datetime) -> Table:
    table = table_of(
        *("id", "when", "app", "revision", "subject", "trigger", "outcome", "took", "reason"), shrinks="reason"
    )
    table.columns[4].max_width = 40
    for each in deployments:
        took = f"{seconds_of(each):.1f} s" if each["finished_at"] else ""
        add(
            table,
            *(each["id"], ago(each["queued_at"], now), each["app"], _short(each), each["subject"] or ""),
            *(each["trigger"], _outcome(each), took, _first_line(each["reason"])),
        )
    return table


def _short(deployment: Answer) -> str:
    return (deployment["revision"] or "")[:7]


def _outcome(deployment: Answer) -> str:
    return str(deployment["outcome"] or deployment["phase"])


def _first_line(reason: str) -> str:
    return reason.partition("\n")[0]


@click.command()
@limit_option
@server_options
def deliveries(*, limit: int, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Show which deliveries arrived and were believed, and what each led to.

    One that was refused, for its signature or its repository, is in the server's log alone.
    """
    with running_server(config, state, as_json=as_json) as api:
        found = api.get("/deliveries", limit=limit)
        if as_json:
            click.echo(json.dumps(found))
        elif not found:
            click.echo("No delivery has arrived yet. To send one: hookdeploy send --event push")
        else:
            show_tables(deliveries_table(found, datetime.now(UTC), console_of().width))


def deliveries_table(deliveries: Sequence[Answer], now: datetime, width: int) -> Table:
    """A row for each; in a narrow terminal one column tells why it led to nothing, or else to what."""
    roomy = width >= ROOMY
    last = ("reason", "deployments") if roomy else ("led to",)
    table = table_of("id", "when", "hook", "event", "ref", "commit", "verdict", *last, shrinks=last[0])
    table.columns[4].max_width = 40 if roomy else 10
    for each in deliveries:
        commit = (each["after"] or "")[:7]
        led_to = " ".join(each["deployments"])
        what = (each["reason"], led_to) if roomy else (each["reason"] or led_to,)
        when = ago(each["received_at"], now)
        add(table, each["id"], when, each["hook"], each["event"], _refs(each), commit, each["verdict"], *what)
    return table


def _refs(delivery: Answer) -> str:
    """The first ref that it tells of, as a person calls it, and how many more."""
    if not delivery["ref"]:
        return ""
    more = len(delivery["pushes"]) - 1
    name = delivery["ref"].removeprefix("refs/heads/").removeprefix("refs/")
    return f"{name} +{more}" if more else name
