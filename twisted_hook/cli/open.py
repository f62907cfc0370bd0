"""``hookdeploy open``: the link that logs a browser in to the dashboard."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path

import click

from twisted_hook import apitoken
from twisted_hook.cli import FAILED
from twisted_hook.cli.client import Api, ApiError, fail, running_server, server_options

TURN_ON = (
    "the dashboard does not listen anywhere; let it, and have the server read that (SIGHUP):\n"
    '  [dashboard]\n  listen = ["tcp:8001:interface=127.0.0.1"]\n'
    "without a configuration file: DASHBOARD_LISTEN=tcp:8001:interface=127.0.0.1"
)


@click.command("open")
@click.option("--print", "only_prints", is_flag=True, help="Print the link, and open no browser.")
@server_options
def open_(*, only_prints: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Print the link that logs a browser in to the dashboard, and open it.

    Whoever has the link may do all that the dashboard can: give it to nobody. Exits with 1 if the dashboard does not
    listen.
    """
    with running_server(config, state, as_json=as_json) as api:
        link = login_link(api)
        if link is None:
            fail(TURN_ON, FAILED, as_json=as_json)
        click.echo(json.dumps({"url": link}) if as_json else link)
        if not (only_prints or as_json):
            click.launch(page_of(link, api.state).as_uri())


def page_of(link: str, state: Path) -> Path:
    """A file for our eyes that leads a browser on: everybody on this machine sees with what a browser was started."""
    page = state / "open.html"
    page.unlink(missing_ok=True)
    descriptor = os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(
            f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(link)}"><title>hookdeploy</title>\n'
        )
    return page.absolute()


def login_link(api: Api) -> str | None:
    """None if the dashboard does not listen. Raises ``ApiError`` if the token cannot be read."""
    listening = api.get("/server").get("dashboard", [])
    address = next((str(each) for each in listening if str(each).startswith("http")), None)
    if address is None:
        return None
    try:
        token = (api.state / "token").read_text("ascii").strip()
    except (OSError, ValueError) as error:
        raise ApiError(f"{api.state / 'token'} cannot be read: {error}") from error
    return apitoken.login_link(address, token)
