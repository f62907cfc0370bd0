"""``hookdeploy log``: what a deployment has printed, and with ``-f`` what it prints until it ends."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from twisted_hook.cli import FAILED
from twisted_hook.cli.client import Api, ApiError, NotRunning, running_server, server_options
from twisted_hook.cli.follow import GOOD_ENDS, LOOK, Answer, look
from twisted_hook.cli.which import deployment_meant
from twisted_hook.redaction import clean, clean_but_colours


@click.command()
@click.argument("id", required=False)
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until it has ended.")
@server_options
def log(*, id: str | None, follows: bool, config: Path | None, state: Path | None, as_json: bool) -> None:
    """Print the output of the deployment ID, or of the newest one, all apps taken together or of the app named ID.

    With -f it goes on until the deployment has ended, also through a restart of the server, and exits with 0 if it was
    deployed or had nothing to deploy, and with 1 if not. With --json it is the deployment, as the API tells it, and its
    "log".
    """
    with running_server(config, state, as_json=as_json) as api:
        deployment = deployment_meant(api, id)
        try:
            ended = _print(api, deployment, follows=follows, as_json=as_json)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(FAILED) from None
        if follows and ended["outcome"] not in GOOD_ENDS:
            raise click.exceptions.Exit(FAILED)


def _print(api: Api, deployment: Answer, *, follows: bool, as_json: bool) -> Answer:
    """Print what it has printed; gives it as it is at the end."""
    said: list[str] = []
    colours = sys.stdout.isatty() and not as_json and not os.environ.get("NO_COLOR")
    while True:
        for piece in log_pieces(api, str(deployment["id"]), follows=follows, colours=colours):
            if as_json:
                said.append(piece)
            else:
                click.echo(piece, nl=False)
                sys.stdout.flush()
        deployment = look(api, str(deployment["id"]))
        if not follows or not deployment["superseded_by"]:
            break
        if not as_json:
            newer = f"{deployment['id']} is superseded by {deployment['superseded_by']}, which does its work:"
            click.echo(clean(newer), err=True)
        deployment = look(api, str(deployment["superseded_by"]))
    if as_json:
        click.echo(json.dumps({**deployment, "log": "".join(said)}))
    return deployment


def log_pieces(api: Api, id: str, *, follows: bool, colours: bool = False) -> Iterator[str]:
    """What is in the log of a deployment by now, and then, if it is followed, what comes until its end.

    A server that is restarted meanwhile is waited for, and asked for what comes after the last that was seen.
    """
    harmless = clean_but_colours if colours else clean
    path, asked = f"/deployments/{id}/log", {"colour": 1} if colours else {}
    if not follows:
        yield harmless(api.text(path, **asked).decode("utf-8", "replace"))
        return
    place = "0"
    while True:
        try:
            for name, data, at in api.events(path, follow=1, since=place, **asked):
                if name == "end":
                    return
                place = at
                yield harmless(str(data))
        except ApiError as error:
            if error.status is not None:
                raise
        except NotRunning:
            pass
        look(api, id)
        time.sleep(LOOK)
