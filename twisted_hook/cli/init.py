"""``hookdeploy init``: a first configuration, a secret, a deploy key, a systemd unit, and what to paste at the forge.

It asks, or takes flags; it never overwrites a file unless told to. With a token it does at GitHub what else a person
would paste there. The secret is shown here and nowhere else.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from twisted_hook import configvalues
from twisted_hook.cli import FAILED, atforge, starter
from twisted_hook.cli.atforge import May, Outcome, set_up
from twisted_hook.cli.forge import GITHUB_HOSTS, GitHubRepository, host_of
from twisted_hook.cli.forgepages import PAGES, forge_at
from twisted_hook.cli.questions import Questions, Wishes
from twisted_hook.cli.rotation import new_secret
from twisted_hook.cli.starter import KEY_FILE, SECRET_FILE, Answers
from twisted_hook.commands import Ambient, protocols_of
from twisted_hook.config import ConfigError, parse
from twisted_hook.configfile import DEFAULT_NAME, load
from twisted_hook.githubrest import api_of
from twisted_hook.localgit import NotUsable, clone_around, look_at_clone
from twisted_hook.model import ForgeFailed
from twisted_hook.redaction import clean
from twisted_hook.survey import content
from twisted_hook.unit import unit

UNIT_NAME = "hookdeploy.service"


@click.command()
@click.option("--repository", metavar="URL", help="What to deploy: https://…, ssh://…, git@host:path or a local path.")
@click.option(
    "--in-place", metavar="PATH", type=click.Path(path_type=Path), help="An existing clone to keep up to date."
)
@click.option(
    "--forge", type=click.Choice([*PAGES]), help="What delivers the pushes.  [default: by the repository's host]"
)
@click.option("--branch", metavar="NAME", help="The branch to deploy; the remote's default branch if it is left out.")
@click.option("--app", metavar="NAME", help="What to call it.")
@click.option("--wsgi", metavar="MODULE:ATTR", help="What gunicorn serves, e.g. wsgi:application.")
@click.option("--bind", metavar="ADDRESS", help="Where the app listens.  [default: 127.0.0.1:8080]")
@click.option("--listen", metavar="ENDPOINT", help="Where the hooks arrive.  [default: tcp:8000]")
@click.option("--public-url", metavar="URL", help="How the forge reaches this server, e.g. https://deploy.example.com.")
@click.option("--state", metavar="PATH", help="Where releases, logs and the journal are kept.")
@click.option("--directory", metavar="PATH", type=click.Path(path_type=Path), help="Write there.  [default: here]")
@click.option(
    "--deploy-key/--no-deploy-key", default=None, help="Make a key for this repository.  [default: if it is over ssh]"
)
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A GitHub token, with which the webhook and the deploy key are made there.  [default: $GITHUB_TOKEN]",
)
@click.option("--api", metavar="URL", help="The API of a GitHub Enterprise server, if it is at no usual address.")
@click.option("--print-unit", is_flag=True, help="Print the systemd unit for the hookdeploy.toml that is there.")
@click.option("--yes", is_flag=True, help="Ask nothing; take the defaults.")
@click.option("--force", is_flag=True, help="Overwrite what is there, the secret too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead; implies --yes.")
def init(
    *,
    directory: Path | None,
    token_file: Path | None,
    api: str | None,
    print_unit: bool,
    yes: bool,
    force: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Write hookdeploy.toml, a secret and a systemd unit.

    Inside a clone of the project most answers are found by themselves. Afterwards it says what to paste at the forge;
    with a token for GitHub, it makes the webhook and the deploy key there itself.
    """
    directory = Path.cwd() / (directory or ".")
    if print_unit:
        click.echo(_unit_of(directory / DEFAULT_NAME), nl=False)
        return
    token, asking = _token(token_file), not (yes or as_json)
    _refuse_to_overwrite(directory, force=force)
    at_github = bool(token_file or api)
    answers = Questions(Wishes(**flags, at_github=at_github), directory, ask=asking).answers()
    if at_github and answers.forge != "github":
        raise click.UsageError(f"--token-file and --api are for GitHub alone, and this is {PAGES[answers.forge].name}")
    made = _written(answers, directory, force=force)
    done = _at_forge(made, token, api, may=lambda question: not asking or click.confirm(question, default=True))
    if as_json:
        click.echo(json.dumps(_facts(made, done)))
    else:
        click.echo("\n".join(_instructions(made, done)))
    for failure in done.failures:
        click.echo(f"\n{clean(failure)}", err=True)
    host = _host(answers)
    if host and flags["forge"] is None and not (asking or at_github or forge_at(host)):
        click.echo(f"\n{host} is taken for GitHub's; if another forge is there: --forge NAME --force", err=True)
    _check_written(directory / DEFAULT_NAME)
    if done.failures:
        raise click.exceptions.Exit(FAILED)


@dataclass(frozen=True, slots=True)
class Made:
    """What was written."""

    answers: Answers
    directory: Path
    secret: str
    public: str = ""
    """The public half of the deploy key, if there is one."""

    @property
    def files(self) -> list[str]:
        return _names(self.answers)


def _names(answers: Answers) -> list[str]:
    return [DEFAULT_NAME, SECRET_FILE, UNIT_NAME, *((KEY_FILE, f"{KEY_FILE}.pub") if answers.deploy_key else ())]


def _token(file: Path | None) -> str | None:
    """From the file, else from the environment. Ends the command if there is none where one was named."""
    if file is None:
        return os.environ.get("GITHUB_TOKEN") or None
    try:
        token = content(file).decode("ascii").strip()
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be read: {error.strerror}", param_hint="--token-file") from None
    except ValueError:
        token = ""
    if not token or not token.isprintable() or " " in token:
        raise click.BadParameter(f"{file} holds no token", param_hint="--token-file")
    return token


def _written(answers: Answers, directory: Path, *, force: bool) -> Made:
    config = directory / DEFAULT_NAME
    text = _checked(starter.configuration(answers), directory)
    if answers.deploy_key:
        _refuse_to_overwrite(directory, force=force, names=_names(answers))
    service = starter.unit(answers, config=config, twistd=_twistd(), user=getpass.getuser())
    secret = new_secret(answers.forge, ())
    try:
        directory.mkdir(parents=True, exist_ok=True)
        public = _new_key(directory / KEY_FILE, answers) if answers.deploy_key else ""
        _write(directory / SECRET_FILE, f"{secret}\n", mode=0o600, force=force)
        _write(config, text, mode=0o644, force=force)
        _write(directory / UNIT_NAME, service, mode=0o644, force=force)
    except OSError as error:
        click.echo(f"{error.filename} cannot be written: {error.strerror}", err=True)
        raise click.exceptions.Exit(FAILED) from None
    return Made(answers, directory, secret, public)


def _new_key(path: Path, answers: Answers) -> str:
    if shutil.which("ssh-keygen") is None:
        raise OSError(0, "ssh-keygen is not installed (apt-get install openssh-client)", str(path))
    for name in (path, path.with_name(f"{path.name}.pub")):
        name.unlink(missing_ok=True)  # what is there may be overwritten: that was asked before
    return atforge.make_key(path, _title(answers))


def _title(answers: Answers) -> str:
    return f"hookdeploy-{answers.app}@{platform.node()}"


def _unit_of(config: Path) -> str:
    try:
        found = parse(content(config).decode("utf-8-sig"), config.parent)
    except (OSError, ValueError, ConfigError) as error:
        click.echo(clean(f"{config} cannot be used: {error}"), err=True)
        raise click.exceptions.Exit(FAILED) from None
    user = found.state.owner() if found.state.exists() else getpass.getuser()
    return unit(found, file=config, twistd=_twistd(), user=user)


def _refuse_to_overwrite(
    directory: Path, *, force: bool, names: Sequence[str] = (DEFAULT_NAME, SECRET_FILE, UNIT_NAME)
) -> None:
    there = [name for name in names if os.path.lexists(directory / name)]
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


# --- at GitHub


def _at_forge(made: Made, token: str | None, api: str | None, *, may: May) -> Outcome:
    """What a token, or GitHub's word on its host keys, saves a person."""
    url = made.answers.repository or _origin_of(made.answers)
    host, outcome = host_of(url), Outcome()
    if made.answers.forge != "github" or not host or (not api and host not in GITHUB_HOSTS):
        return outcome
    github = GitHubRepository(configvalues.name_of(url), api=api or api_of(host), token=token)
    if token and made.answers.public_url is None:
        outcome.failures.append("GitHub cannot be told where to deliver: say --public-url, and --force")
    elif token:
        key = (_title(made.answers), made.public) if made.public else None
        payload_url = made.answers.payload_url
        outcome = set_up(
            github, payload_url=payload_url, path=made.answers.hook_path, secret=made.secret, key=key, may=may
        )
    known = atforge.known_hosts()
    if made.public and not atforge.is_known(host, known) and may(f"Let ssh know the host keys of {host} ({known})"):
        try:
            atforge.introduce(host, github, known)
        except (ForgeFailed, OSError) as failed:
            outcome.failures.append(f"ssh does not know the host keys of {host}: {failed}; hookdeploy doctor helps")
    github.close()
    return outcome


def _host(answers: Answers) -> str:
    """Where the repository is; empty if it is on this machine."""
    return clean(host_of(answers.repository or _origin_of(answers)))


def _origin_of(answers: Answers) -> str:
    try:
        clone = answers.in_place and look_at_clone(Ambient.from_environ(os.environ), answers.in_place)
    except NotUsable:
        return ""
    return (clone.origin or "") if clone else ""


# --- what to do next


def _facts(made: Made, done: Outcome) -> dict[str, object]:
    facts = {
        "ok": not done.failures,
        "forge": made.answers.forge,
        "files": [str(made.directory / name) for name in made.files],
        "payload_url": made.answers.payload_url,
        "content_type": "application/json",
        "secret": made.secret,
        "events": [PAGES[made.answers.forge].event],
    }
    at_github = {"webhook": done.webhook, "deploy_key": made.public, "deploy_key_added": done.key_added}
    return {**facts, **{name: value for name, value in at_github.items() if value}}


def _instructions(made: Made, done: Outcome) -> Iterator[str]:
    config = made.directory / DEFAULT_NAME
    yield f"Written in {made.directory}:"
    yield f"  {DEFAULT_NAME:20} the configuration"
    yield f"  {SECRET_FILE:20} what {PAGES[made.answers.forge].name} and hookdeploy share, for nobody else to read"
    yield f"  {UNIT_NAME:20} a systemd unit"
    if made.public:
        yield f"  {KEY_FILE:20} with which ssh reads the repository, for nobody else to read"
    yield ""
    yield from _to_paste(made, done)
    yield "Next:"
    yield f"  {_twistd().with_name('hookdeploy')} check {config}"
    yield f"  {_twistd()} -n --pidfile= hookdeploy --config {config}"
    yield f"  sudo systemctl enable --now {made.directory / UNIT_NAME}   (instead, to have it run always)"
    for note in _notes(made.answers, made.directory):
        yield ""
        yield note
    yield ""
    yield f"If anything does not work: {_twistd().with_name('hookdeploy')} doctor --config {config}"


def _to_paste(made: Made, done: Outcome) -> Iterator[str]:
    pages = PAGES[made.answers.forge]
    if done.webhook:
        yield f"At GitHub the webhook was {done.webhook}; it delivers to {made.answers.payload_url}"
        yield ""
    else:
        yield f"At {pages.name}, {pages.adding}:"
        fields = [*pages.fields(made.answers.payload_url, made.secret)]
        width = max(14, *(len(label) for label, _ in fields))
        yield from (f"  {label:{width}} {value}" for label, value in fields)
        yield ""
    if done.key_added:
        yield "At GitHub the deploy key was added, for reading alone."
        yield ""
    elif made.public:
        yield f"And {pages.keys}:"
        yield f"  {'Key':14} {made.public}"
        yield ""


def _notes(answers: Answers, directory: Path) -> Iterator[str]:
    pages, host = PAGES[answers.forge], _host(answers)
    if answers.public_url is None:
        guess = "The address above is a guess"
        yield f"{guess}: {pages.name} must reach this server by it. Set public_url once it is known."
    if pages.note:
        yield pages.note
    if answers.deploy_key and answers.forge != "github" and not atforge.is_known(host, atforge.known_hosts()):
        yield f"ssh may not know {host} yet, and there is nobody to ask then: hookdeploy doctor says how it gets to."
    if not answers.deploy_key and protocols_of(answers.repository or "") == "ssh":
        yield f"The server fetches over ssh as {getpass.getuser()}, whose key must be a deploy key of the repository."
    if _is_in_a_clone(directory):
        private = f"{SECRET_FILE} or {KEY_FILE}" if answers.deploy_key else SECRET_FILE
        yield f"{directory} is inside a git clone: never commit {private} (name it in .gitignore)."


def _is_in_a_clone(directory: Path) -> bool:
    try:
        return clone_around(Ambient.from_environ(os.environ), directory) is not None
    except NotUsable:
        return False
