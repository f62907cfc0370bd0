"""What ``hookdeploy init`` writes: the text of a first hookdeploy.toml and of a systemd unit.

Pure: answers go in, text comes out; nothing is asked, looked up or written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twisted_hook import addresses
from twisted_hook import unit as units
from twisted_hook.config import parse

SECRET_FILE = "hook.secret"  # noqa: S105 - the name of a file
KEY_FILE = "deploy_key"

DASHBOARD = "tcp:8001:interface=127.0.0.1"
"""Where its pages are, unless something else is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the user wants. Exactly one of ``repository`` and ``in_place`` is set."""

    app: str
    repository: str | None
    in_place: Path | None
    branch: str | None
    wsgi: str | None
    bind: str
    listen: str
    public_url: str | None
    state: Path
    deploy_key: bool = False
    """Whether the repository gets a key of its own, in ``KEY_FILE`` beside the configuration."""
    forge: str = "github"
    """Where the repository is; its hook has the same name."""
    names: tuple[str, ...] = ()
    """What the forge calls the repository, where the configuration would not find it by itself."""

    @property
    def hook_path(self) -> str:
        return f"/hooks/{self.forge}"

    @property
    def payload_url(self) -> str:
        """Where the forge is to deliver, as far as it can be told."""
        if self.public_url:
            return self.public_url + self.hook_path
        address = addresses.endpoint_address(self.listen)
        return f"http://<this server>{f':{address[1]}' if address else ''}{self.hook_path}"


def toml_string(text: str) -> str:
    """A TOML basic string: as in JSON, but for U+007F, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")


def configuration(answers: Answers) -> str:
    """A hookdeploy.toml that says what a newcomer needs to know about it."""
    return "\n".join([*_general_part(answers), *_app_part(answers), *_server_part(answers)]) + "\n"


def _is_taken(answers: Answers) -> bool:
    """Whether the dashboard's usual place is somebody else's."""
    place = addresses.endpoint_address(DASHBOARD)
    others = (addresses.endpoint_address(answers.listen), addresses.bound_address(answers.bind))
    return any(place and other and addresses.collide(place, other) for other in others)


def _setting(key: str, value: str | None, example: str = "") -> str:
    return f"{key} = {toml_string(value)}" if value else f"# {key} = {toml_string(example)}"


def _general_part(answers: Answers) -> Iterator[str]:
    yield "# hookdeploy: somebody pushes, and the site is new. hookdeploy check reads this file and names every fault."
    yield ""
    yield "# The journal, the releases and the logs; made with mode 0700."
    yield _setting("state", str(answers.state))
    yield ""
    yield "[server]"
    yield "# Where the forge delivers, as Twisted endpoint strings. Put a proxy with TLS in front, or use tls: itself."
    yield f"listen = [{toml_string(answers.listen)}]"
    yield _setting("public_url", answers.public_url, "https://deploy.example.com")
    yield ""
    yield "[dashboard]"
    yield "# Pages for people on this machine; hookdeploy open prints a link. From afar: ssh -L 8001:127.0.0.1:8001"
    yield f"{'# ' if _is_taken(answers) else ''}listen = [{toml_string(DASHBOARD)}]"
    yield ""
    yield f"[hooks.{answers.forge}]  # POST {answers.hook_path}"
    if answers.forge != "github":
        yield _setting("forge", answers.forge)
    yield "# Several secrets may be valid at a time, so that a new one can follow the old one without a gap."
    yield f"secrets = [{{ file = {toml_string(SECRET_FILE)} }}]"
    yield ""


def _app_part(answers: Answers) -> Iterator[str]:
    yield f"[apps.{answers.app}]"
    yield _setting("hook", answers.forge)
    if answers.in_place is not None:
        yield "# This clone itself is kept up to date: a fetch from its origin, and a rebase."
        yield 'mode = "in-place"'
        yield _setting("path", str(answers.in_place))
    else:
        yield _setting("repository", answers.repository)
    if answers.names:
        yield "# What the forge calls it in what it delivers."
        yield f"names = [{', '.join(map(toml_string, answers.names))}]"
    if answers.deploy_key:
        yield "# With which ssh reads it; its public half is a deploy key at the forge."
        yield _setting("deploy_key", KEY_FILE)
    if answers.branch is None:
        yield "# Without a branch it is the remote's default branch."
    yield _setting("branch", answers.branch, "main")
    yield ""
    yield '# Steps run without a shell. "auto" installs what uv.lock, requirements.txt or pyproject.toml ask for.'
    yield 'build = "auto"'
    yield "# Steps that run once in a deployment, when it is built and before the old release goes."
    yield '# migrate = ["python manage.py migrate --no-input"]'
    if answers.in_place is None:
        yield "# What all releases have in common, such as uploads."
        yield '# shared = ["media/"]'
    yield ""


def _server_part(answers: Answers) -> Iterator[str]:
    if answers.wsgi is None:
        yield "# Without wsgi there is no server: the code is fetched and built only."
    yield _setting("wsgi", answers.wsgi, "wsgi:application")
    yield "# hookdeploy owns this socket and hands it from one release to the next, so no request is lost."
    yield _setting("bind", answers.bind)
    yield "workers = 2"
    yield "# Asked of a new release before it gets any traffic, and while it proves itself beside the old one."
    yield _setting("health", None, "/healthz")
    yield "# KEY=value lines for the steps and the server, read again at every deployment."
    yield _setting("env_file", None, f"{answers.app}.env")


def unit(answers: Answers, *, config: Path, twistd: Path, user: str) -> str:
    """The systemd unit for the configuration of these answers; all paths are absolute."""
    return units.unit(parse(configuration(answers), config.parent), file=config, twistd=twistd, user=user)
