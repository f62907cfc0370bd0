"""``hookdeploy init``: a first configuration, a secret and a systemd unit, and what to paste at the forge.

It asks, or takes flags; it never overwrites a file unless told to. The secret is shown here and nowhere else.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from twisted_hook import configvalues
from twisted_hook.cli import FAILED, starter
from twisted_hook.cli.questions import Questions, Wishes
from twisted_hook.cli.starter import SECRET_FILE, Answers
from twisted_hook.commands import Ambient
from twisted_hook.config import ConfigError, parse
from twisted_hook.configfile import DEFAULT_NAME, load
from twisted_hook.localgit import NotUsable, clone_around
from twisted_hook.redaction import clean

UNIT_NAME = "hookdeploy.service"


@click.command()
@click.option("--repository", metavar="URL", help="What to deploy: https://…, ssh://…, git@host:path or a local path.")
@click.option(
    "--in-place", metavar="PATH", type=click.Path(path_type=Path), help="An existing clone to keep up to date."
)
@click.option("--branch", metavar="NAME", help="The branch to deploy; the remote's default branch if it is left out.")
@click.option("--app", metavar="NAME", help="What to call it.")
@click.option("--wsgi", metavar="MODULE:ATTR", help="What gunicorn serves, e.g. wsgi:application.")
@click.option("--bind", metavar="ADDRESS", help="Where the app listens.  [default: 127.0.0.1:8080]")
@click.option("--listen", metavar="ENDPOINT", help="Where the hooks arrive.  [default: tcp:8000]")
@click.option("--public-url", metavar="URL", help="How the forge reaches this server, e.g. https://deploy.example.com.")
@click.option("--state", metavar="PATH", help="Where releases, logs and the journal are kept.")
@click.option("--directory", metavar="PATH", type=click.Path(path_type=Path), help="Write there.  [default: here]")
@click.option("--yes", is_flag=True, help="Ask nothing; take the defaults.")
@click.option("--force", is_flag=True, help="Overwrite what is there, the secret too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead; implies --yes.")
def init(directory: Path | None, yes: bool, force: bool, as_json: bool, **flags: Any) -> None:
    """Write hookdeploy.toml, a secret and a systemd unit.

    Inside a clone of the project most answers are found by themselves. Afterwards it says what to paste at GitHub.
    """
    directory = Path.cwd() / (directory or ".")
    config = directory / DEFAULT_NAME
    _refuse_to_overwrite(directory, force=force)
    answers = Questions(Wishes(**flags), directory, ask=not (yes or as_json)).answers()
    text = _checked(starter.configuration(answers), directory)
    unit = starter.unit(answers, config=config, twistd=_twistd(), user=getpass.getuser())
    secret = secrets.token_hex(32)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / SECRET_FILE, f"{secret}\n", mode=0o600, force=force)
        _write(config, text, mode=0o644, force=force)
        _write(directory / UNIT_NAME, unit, mode=0o644, force=force)
    except OSError as error:
        click.echo(f"{error.filename} cannot be written: {error.strerror}", err=True)
        raise click.exceptions.Exit(FAILED) from None
    if as_json:
        click.echo(json.dumps(_facts(answers, directory, secret)))
    else:
        click.echo("\n".join(_instructions(answers, directory, secret)))
    _check_written(config)


def _refuse_to_overwrite(directory: Path, *, force: bool) -> None:
    there = [name for name in (DEFAULT_NAME, SECRET_FILE, UNIT_NAME) if os.path.lexists(directory / name)]
    if there and not force:
        click.echo(f"{directory} has {', '.join(there)} already; --force overwrites", err=True)
        raise click.exceptions.Exit(FAILED)


def _checked(text: str, directory: Path) -> str:
    try:
        parse(text, directory)
    except ConfigError as error:
        raise click.UsageError(f"that would not make a valid configuration:\n{clean(str(error))}") from None
    return text


def _write(path: Path, content: str, *, mode: int, force: bool) -> None:
    """A new file; what stands in its place is removed first, so that an old file's mode or link cannot matter."""
    if force:
        path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "w") as file:
        file.write(content)


def _twistd() -> Path:
    """The twistd of this very interpreter."""
    beside = Path(sys.executable).with_name("twistd")
    return beside if beside.exists() else Path(shutil.which("twistd") or beside)


def _check_written(config: Path) -> None:
    """The world may still lack something; then the files stand, and the exit says so."""
    try:
        load(config, os.environ)
    except ConfigError as error:
        click.echo(f"\nBefore it can start:\n{clean(str(error))}", err=True)
        raise click.exceptions.Exit(FAILED) from None


# --- what to do next


def _facts(answers: Answers, directory: Path, secret: str) -> dict[str, object]:
    return {
        "ok": True,
        "files": [str(directory / name) for name in (DEFAULT_NAME, SECRET_FILE, UNIT_NAME)],
        "payload_url": answers.payload_url,
        "content_type": "application/json",
        "secret": secret,
        "events": ["push"],
    }


def _instructions(answers: Answers, directory: Path, secret: str) -> Iterator[str]:
    config = directory / DEFAULT_NAME
    yield f"Written in {directory}:"
    yield f"  {DEFAULT_NAME:20} the configuration"
    yield f"  {SECRET_FILE:20} what GitHub and hookdeploy share, for nobody else to read"
    yield f"  {UNIT_NAME:20} a systemd unit"
    yield ""
    yield "At GitHub, under the repository's Settings → Webhooks → Add webhook:"
    yield f"  Payload URL    {answers.payload_url}"
    yield "  Content type   application/json"
    yield f"  Secret         {secret}"
    yield "  Events         Just the push event"
    yield ""
    yield "Next:"
    yield f"  {_twistd().with_name('hookdeploy')} check {config}"
    yield f"  {_twistd()} -n --pidfile= hookdeploy --config {config}"
    yield f"  sudo systemctl enable --now {directory / UNIT_NAME}   (instead, to have it run always)"
    for note in _notes(answers, directory):
        yield ""
        yield note


def _notes(answers: Answers, directory: Path) -> Iterator[str]:
    if answers.public_url is None:
        yield "The address above is a guess: GitHub must reach this server by it. Set public_url once it is known."
    if answers.repository and (answers.repository.startswith("ssh://") or configvalues.is_scp_like(answers.repository)):
        yield f"The server fetches over ssh as {getpass.getuser()}, whose key must be a deploy key of the repository."
    if _is_in_a_clone(directory):
        yield f"{directory} is inside a git clone: never commit {SECRET_FILE} (name it in .gitignore)."


def _is_in_a_clone(directory: Path) -> bool:
    try:
        return clone_around(Ambient.from_environ(os.environ), directory) is not None
    except NotUsable:
        return False
