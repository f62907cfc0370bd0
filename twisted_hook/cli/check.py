"""``hookdeploy check``: the configuration, as the server would read it at its start, without starting anything.

It shows what hookdeploy understood, or every fault; never a secret.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import click

from twisted_hook.cli import FAILED
from twisted_hook.config import AppConfig, Config, ConfigError, HookConfig
from twisted_hook.configfile import DEFAULT_NAME, Settings, load
from twisted_hook.configvalues import joined
from twisted_hook.redaction import Redactor, clean


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def check(file: Path | None, as_json: bool) -> None:
    """Read FILE and name everything that is wrong with it.

    Without FILE it is ./hookdeploy.toml if there is one, else the environment (GITHUB_SECRET, REPO_PATH, …), as for
    the server itself. Exits with 1 if the server would not start.
    """
    try:
        settings = load(file, os.environ)
    except ConfigError as error:
        _show_faults(error, as_json=as_json)
        raise click.exceptions.Exit(FAILED) from None
    if as_json:
        click.echo(json.dumps({"ok": True, "faults": [], "warnings": list(settings.warnings)}))
        return
    for warning in settings.warnings:
        click.echo(f"warning: {clean(warning)}", err=True)
    mask = Redactor(settings.redact)
    for line in summary(settings):
        click.echo(mask.text(line))


def _show_faults(error: ConfigError, *, as_json: bool) -> None:
    if as_json:
        faults = [{"path": fault.path, "message": fault.message} for fault in error.faults]
        click.echo(json.dumps({"ok": False, "faults": faults, "warnings": []}))
        return
    click.echo(clean(str(error)), err=True)
    if error.source == "environment":
        click.echo(
            f"There is no {DEFAULT_NAME} here, so the environment was read: hookdeploy init writes one.", err=True
        )


def summary(settings: Settings) -> Iterator[str]:
    """What hookdeploy understood, a line for each thing."""
    config = settings.config
    yield f"{settings.source or 'The environment'} is good."
    yield f"  state  {config.state}"
    for hook in config.hooks:
        apps = ", ".join(app.name for app in config.apps.values() if app.hook == hook.name)
        asks = "; what fails to arrive is asked for again" if hook.token else ""
        told = f"POST {hook_url(config, hook)} ({hook.forge}){_senders(hook)}"
        yield f"  hook   {hook.name}: {told} deploys {apps or 'nothing'}{asks}"
    for app in config.apps.values():
        yield f"  app    {app.name}: {_origin(app)}, {_branch(app)}{_paths(app)} → {_server(app)}; {_polled(app)}"


def hook_url(config: Config, hook: HookConfig) -> str:
    """The address of a hook as the forge is to know it, as far as the configuration tells."""
    if config.server.public_url:
        return config.server.public_url + hook.path
    return f"{hook.path} on {', '.join(config.server.listen)}"


def _senders(hook: HookConfig) -> str:
    return f" only from {', '.join(hook.only_from)}" if hook.only_from else ""


def _paths(app: AppConfig) -> str:
    return f", only what changes {', '.join(app.paths)}" if app.paths else ""


def _origin(app: AppConfig) -> str:
    return f"{app.path} in place" if app.mode == "in-place" else str(app.repository)


def _branch(app: AppConfig) -> str:
    if app.tag:
        return f"the newest tag {app.tag}"
    return f"branch {app.branch}" if app.branch else "the remote's default branch"


def _polled(app: AppConfig) -> str:
    return f"looks at the remote every {app.poll:g} s" if app.poll else "waits for pushes only"


def _server(app: AppConfig) -> str:
    if app.command:
        return f"{joined(app.command)} on {app.bind}"
    return f"{app.wsgi} on {app.bind}, {app.workers} worker{'s' * (app.workers != 1)}" if app.wsgi else "no server"
