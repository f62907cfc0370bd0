"""What ``hookdeploy init`` asks: each answer is a flag, or what a person says, or what can be seen here.

Looks at the clone around it, and writes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from twisted_hook import addresses, configvalues
from twisted_hook.cli.forge import host_of
from twisted_hook.cli.forgepages import PAGES, forge_at
from twisted_hook.cli.starter import Answers
from twisted_hook.commands import Ambient, protocols_of
from twisted_hook.config import app_name
from twisted_hook.configvalues import path_of
from twisted_hook.localgit import LocalClone, NotUsable, clone_around, look_at_clone

NONE = "-"
"""What a person answers who wants none of it."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """The flags as they were given."""

    repository: str | None
    branch: str | None
    app: str | None
    wsgi: str | None
    bind: str | None
    listen: str | None
    public_url: str | None
    state: str | None
    in_place: Path | None
    deploy_key: bool | None = None
    forge: str | None = None
    at_github: bool = False
    """Something was given that is for GitHub alone."""


class Questions:
    """Finds each answer: the flag, else what the person says, else the default."""

    def __init__(self, wishes: Wishes, directory: Path, *, ask: bool) -> None:
        self._wishes = wishes
        self._directory = directory
        self._ask = ask
        self._ambient = Ambient.from_environ(os.environ)

    def answers(self) -> Answers:
        clone = self._clone()
        in_place = clone.top if clone and self._wishes.in_place else None
        repository = None if in_place else self._repository(clone)
        # A clone tells about what is deployed only if it is a clone of that.
        seen = clone if clone and (in_place or repository == _origin(clone)) else None
        name = in_place.name if in_place else configvalues.name_of(repository or "").rpartition("/")[2]
        url = repository or (_origin(clone) if clone else None) or ""
        forge = self._forge(url)
        app = self._required("Name of the app", "app", configvalues.name, app_name(name))
        branch = self._optional(
            "Branch", "branch", configvalues.branch, seen.branch if seen else None, without="the remote's default"
        )
        wsgi, bind = self._server(seen)
        return Answers(
            app=app,
            repository=repository,
            in_place=in_place,
            branch=branch,
            wsgi=wsgi,
            bind=bind,
            listen=self._required("Hooks arrive on", "listen", _placed(addresses.endpoint), "tcp:8000"),
            public_url=self._optional(
                "Public address, as in https://deploy.example.com",
                "public_url",
                configvalues.public_url,
                None,
                without="not known yet",
            ),
            state=Path(self._required("State directory", "state", _state, str(self._default_state(app, clone)))),
            deploy_key=self._deploy_key(url),
            forge=forge,
            names=_names(forge, url),
        )

    def _forge(self, url: str) -> str:
        """As the host of the repository tells, else as a person does; else GitHub."""
        host = host_of(url)
        known = forge_at(host) or ("github" if self._wishes.at_github or not host or not self._ask else None)
        forge = self._wishes.forge or known
        return forge or self._required(f"Forge at {host} ({', '.join(PAGES)})", "forge", _forge, "github")

    def _deploy_key(self, url: str) -> bool:
        over_ssh, wish = protocols_of(url) == "ssh", self._wishes.deploy_key
        if wish and not over_ssh:
            raise click.UsageError("--deploy-key is for a repository over ssh, such as git@github.com:acme/blog.git")
        if wish is None and over_ssh and self._ask:
            return click.confirm("Make a deploy key for this repository", default=True)
        return over_ssh if wish is None else wish

    def _server(self, seen: LocalClone | None) -> tuple[str | None, str]:
        wsgi = self._optional(
            "WSGI application, module:attribute",
            "wsgi",
            configvalues.wsgi,
            find_wsgi(seen.top) if seen else "wsgi:application" if self._ask else None,
            without="no server",
        )
        bind = "127.0.0.1:8080"
        if wsgi or self._wishes.bind:
            bind = self._required("The app listens on", "bind", _placed(addresses.bind), bind)
        return wsgi, bind

    def _clone(self) -> LocalClone | None:
        if self._wishes.repository is not None and self._wishes.in_place is not None:
            raise click.UsageError("say --repository or --in-place, not both: in place, the clone's origin is fetched")
        try:
            if self._wishes.in_place is not None:
                return look_at_clone(self._ambient, Path.cwd() / self._wishes.in_place)
            place = self._directory if self._directory.is_dir() else Path.cwd()
            return clone_around(self._ambient, place)
        except NotUsable as error:
            if self._wishes.in_place is None:
                return None
            raise click.BadParameter(str(error), param_hint="--in-place") from None

    def _repository(self, clone: LocalClone | None) -> str:
        if self._wishes.repository is None and not self._ask and not (clone and _origin(clone)):
            raise click.UsageError("say what to deploy: --repository URL, or --in-place PATH for an existing clone")
        default = _origin(clone) if clone else None
        return self._required(
            "Repository to deploy, as in git@github.com:acme/blog.git",
            "repository",
            _placed(configvalues.repository),
            default,
        )

    def _default_state(self, app: str, clone: LocalClone | None) -> Path:
        if clone is not None and self._directory.is_relative_to(clone.top):
            return clone.top.parent / f".hookdeploy-{app}"
        return Path("/var/lib/hookdeploy") if self._directory.is_relative_to("/etc") else self._directory / "state"

    def _required(self, question: str, flag: str, check: Callable[[str], str], default: str | None) -> str:
        given: str | None = getattr(self._wishes, flag)
        settled = given if given is not None else None if self._ask else default
        if settled is not None:
            return _valid(check, settled, flag)
        answer: str = click.prompt(question, default=default, value_proc=lambda said: _valid(check, said, None))
        return answer

    def _optional(
        self, question: str, flag: str, check: Callable[[str], str], default: str | None, *, without: str
    ) -> str | None:
        given: str | None = getattr(self._wishes, flag)
        settled = given if given is not None else default
        if given is not None or not self._ask:
            return _valid(check, settled, flag) if settled else None
        answer: str = click.prompt(
            f"{question} ({NONE}: {without})",
            default=default or NONE,
            value_proc=lambda said: said if said == NONE else _valid(check, said, None),
        )
        return None if answer == NONE else answer


def _valid(check: Callable[[str], str], value: str, flag: str | None) -> str:
    try:
        return check(value)
    except ValueError as error:
        hint = f"--{flag.replace('_', '-')}" if flag else None
        raise click.BadParameter(str(error), param_hint=hint) if hint else click.UsageError(f"It {error}.") from None


def _placed(check: Callable[[str, Path], str]) -> Callable[[str], str]:
    return lambda value: check(value, Path.cwd())


def _forge(value: str) -> str:
    if value not in PAGES:
        raise ValueError(f"must be one of {', '.join(PAGES)}")
    return value


def _names(forge: str, url: str) -> tuple[str, ...]:
    """What a repository in a group of a group is called at GitLab: its whole path.

    The configuration itself would take the last two components, which is right if GitLab is not at its host's root.
    """
    path = path_of(url)
    return ("/".join(path), "/".join(path[-2:])) if forge == "gitlab" and host_of(url) and len(path) > 2 else ()


def _state(value: str) -> str:
    return str(configvalues.path(value, Path.cwd()))


def _origin(clone: LocalClone) -> str | None:
    """The clone's origin as a repository that may be configured: without a password, and a path made whole."""
    origin = clone.origin or ""
    try:
        parts = urlsplit(origin)
        if parts.scheme in {"http", "https"}:
            origin = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return configvalues.repository(origin, clone.top)
    except ValueError:
        return None


_DEFINITION = re.compile(
    r"^(application|app)\s*(?::[^=\n]+)?=(?!=)"
    r"|^def (application|app)\("
    r"|^from [\w.]+ import (?:.*\b)?(application|app)\b",
    re.MULTILINE,
)


def find_wsgi(top: Path) -> str | None:
    """The WSGI application of the project in this directory, as far as the usual places tell."""
    django = sorted(top.glob("*/wsgi.py")) if (top / "manage.py").is_file() else []
    for path in (top / "wsgi.py", *django, top / "app.py", top / "main.py"):
        try:
            source = path.read_text(errors="replace")
        except OSError:
            continue
        module = ".".join(path.relative_to(top).with_suffix("").parts)
        found = _DEFINITION.search(source)
        if found:
            return f"{module}:{found[found.lastindex or 0]}"
        if re.search(r"^def create_app\(", source, re.MULTILINE):
            return f"{module}:create_app()"
        if path.name == "wsgi.py":
            return f"{module}:application"
    return None
