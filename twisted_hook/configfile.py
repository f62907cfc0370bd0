"""The configuration as it stands on this machine: the file or the environment, the secrets, and what both speak of.

Reads the disk and asks git, once, before anything listens. Of a faulty configuration it looks at all that can be told,
so that every fault is reported at once. Secrets are never part of a fault or a warning.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType

from twisted_hook import DEFAULT_NAME, exposure
from twisted_hook.accounts import NoSuchAccount, account_of
from twisted_hook.config import (
    AppConfig,
    Config,
    ConfigError,
    Fault,
    HookConfig,
    Reading,
    StepConfig,
    read,
    read_environment,
)
from twisted_hook.configschema import key_path
from twisted_hook.configvalues import GITHUB, looks_like_shell, name_of
from twisted_hook.forges import flaw
from twisted_hook.hooks import Hook, Secret, Subscription
from twisted_hook.localgit import LocalClone
from twisted_hook.refs import HEADS
from twisted_hook.survey import PASSABLE, Survey, check_state, content, read_env_file

__all__ = ["DEFAULT_NAME", "Settings", "load", "prepare_state", "read_env_file"]

_STATE_DIRECTORIES = ("mirrors", "apps", "logs")
SHORTEST_REDACTED = 8
"""Characters: shorter values of variables are no secrets, and would be masked all over the place."""
REPEATS = 3 * 86_400.0
"""Seconds for which GitHub lets one ask for a delivery again; no other forge is known to repeat one for longer."""
_TELLING_WORDS = ("SECRET", "TOKEN", "PASSWORD", "PASSWD", "KEY", "CREDENTIAL")


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration that can be started with."""

    config: Config
    hooks: tuple[Hook, ...]
    tokens: Mapping[str, str] = field(repr=False)
    """With which a forge's API is asked, by the name of the hook that has one."""
    redact: tuple[str, ...] = field(repr=False)
    """Values that no sink may show."""
    warnings: tuple[str, ...]
    source: Path | None
    """The file; None where the environment is the configuration."""


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of this file, else of ./hookdeploy.toml if there is one, else of the environment.

    Raises ``ConfigError`` with every fault of the text and of the world.
    """
    found = path is None and Path(DEFAULT_NAME).exists()
    if found:
        path = Path(DEFAULT_NAME)
    name = "environment" if path is None else str(path)
    reading = read_environment(environ, Path.cwd()) if path is None else _read_file(path, name)
    survey = Survey(environ)
    survey.look(reading.mentions)
    faults = (
        *reading.faults,
        *survey.faults,
        *_useless_secrets(reading.config, survey.secrets),
        *_unservable(reading.config, path),
    )
    if reading.config is None or faults:
        raise ConfigError(faults, name)
    config = _completed(reading.config, survey.clones, without_file=path is None)
    hooks = tuple(_hooks(config, survey.secrets))
    return Settings(
        config=config,
        hooks=hooks,
        tokens=MappingProxyType(
            {hook.name: survey.tokens[hook.token.where] for hook in config.hooks if hook.token is not None}
        ),
        redact=_to_redact(config, survey),
        warnings=(*survey.warnings, *_warnings(config, hooks, path), *(_unread(config, environ) if found else ())),
        source=path and path.absolute(),
    )


def _unservable(config: Config | None, path: Path | None) -> Iterator[Fault]:
    """What keeps the endpoints with TLS from being served."""
    for place, endpoint in enumerate(config.server.listen if config is not None else ()):
        if not endpoint.removeprefix("haproxy:").startswith(("ssl:", "tls:")):
            continue
        # Few have TLS here, and what it stands on is much.
        from twisted_hook.certificates import BadCertificate, source_of  # noqa: PLC0415

        try:
            if (source := source_of(endpoint)) is not None:
                source.options()
        except (BadCertificate, ValueError) as error:
            yield Fault("HOOK_LISTEN" if path is None else key_path(("server", "listen", place)), str(error))


def _read_file(path: Path, name: str) -> Reading:
    try:
        text = content(path).decode()
    except OSError as error:
        raise ConfigError([Fault("", f"cannot be read: {error.strerror}")], name) from None
    except UnicodeDecodeError as error:
        raise ConfigError([Fault("", f"is not UTF-8 text (byte {error.start})")], name) from None
    except ValueError as error:
        raise ConfigError([Fault("", str(error))], name) from None
    return read(text.removeprefix("\ufeff"), path.absolute().parent)


def _completed(config: Config, clones: Mapping[Path, LocalClone], *, without_file: bool) -> Config:
    """The configuration with what only the clones can tell.

    From a file, an app in place answers to its origin's name; from the environment alone, to any name.
    """
    apps = {
        name: _told_by(clones[app.path], app, without_file=without_file) if app.path else app
        for name, app in config.apps.items()
    }
    return replace(config, apps=MappingProxyType(apps))


def _told_by(clone: LocalClone, app: AppConfig, *, without_file: bool) -> AppConfig:
    wsgi, names = app.wsgi, app.names
    if without_file and wsgi is None and (clone.top / "wsgi.py").is_file():
        wsgi = "wsgi:application"
    if not without_file and not names:
        names = (name_of(clone.origin or ""),)
    return replace(app, branch=app.branch or clone.branch, wsgi=wsgi, names=names)


def _hooks(config: Config, secrets: Mapping[str, bytes]) -> Iterator[Hook]:
    for hook in config.hooks:
        yield Hook(
            name=hook.name,
            path=hook.path,
            forge=hook.forge,
            secrets=tuple(Secret(secrets[source.where], source.words) for source in hook.secrets),
            allow_sha1=hook.allow_sha1,
            networks=tuple(ip_network(sender) for sender in hook.only_from if sender != GITHUB),
            published=GITHUB in hook.only_from,
            subscriptions=tuple(_subscription(app) for app in _apps_of(config, hook)),
        )


def _useless_secrets(config: Config | None, secrets: Mapping[str, bytes]) -> Iterator[Fault]:
    for hook in config.hooks if config else ():
        for source in hook.secrets:
            secret = secrets.get(source.where)
            if secret is not None and (problem := flaw(hook.forge, secret)):
                yield Fault(source.where, problem)


def _apps_of(config: Config, hook: HookConfig) -> list[AppConfig]:
    return [app for app in config.apps.values() if app.hook == hook.name]


def _subscription(app: AppConfig) -> Subscription:
    return Subscription(app.name, app.names, f"{HEADS}{app.branch}" if app.branch else None, app.tag)


# --- what no sink may show


def _to_redact(config: Config, survey: Survey) -> tuple[str, ...]:
    secrets = [secret.decode("utf-8", "replace") for secret in survey.secrets.values()] + [*survey.tokens.values()]
    passwords = [clone.password for clone in survey.clones.values() if clone.password]
    values = [*survey.env_values, *_telling_values(config), *passwords]
    return tuple(dict.fromkeys((*secrets, *(value for value in values if len(value) >= SHORTEST_REDACTED))))


def _telling_values(config: Config) -> Iterator[str]:
    """Values from the configuration itself whose names say that they are secret."""
    for app in config.apps.values():
        for env in (app.env, *(step.env for _, step in _steps(app))):
            yield from (value for name, value in env.items() if any(word in name.upper() for word in _TELLING_WORDS))


def _steps(app: AppConfig) -> Iterator[tuple[str, StepConfig]]:
    """The steps of an app, each behind its key path."""
    for key, steps in (("build", () if app.build == "auto" else app.build), ("migrate", app.migrate)):
        yield from ((key_path(("apps", app.name, key, place)), step) for place, step in enumerate(steps))


# --- what a person should know


def _unread(config: Config, environ: Mapping[str, str]) -> Iterator[str]:
    """What the environment says in vain where a file was found. A secret of the file's own may be a variable of it."""
    wanted = {secret.env for hook in config.hooks for secret in hook.secrets}
    if names := [
        name for name in ("GITHUB_SECRET", "REPO_PATH", "HOOKDEPLOY_STATE") if name in environ.keys() - wanted
    ]:
        yield f"./{DEFAULT_NAME} is the configuration; {', '.join(names)} in the environment: not read beside it"


def _warnings(config: Config, hooks: Iterable[Hook], path: Path | None) -> Iterator[str]:
    yield from exposure.warnings(config.server, hooks, from_file=path is not None)
    yield from exposure.warnings_of_dashboard(config.dashboard, from_file=path is not None)
    if config.server.history < REPEATS:
        yield (
            "server.history: a forge may deliver a push again for three days, and what the journal has let go of by "
            'then is deployed again; take "3d" or more'
        )
    yield from _warnings_of_hooks(config)
    yield from _same_secrets(config, hooks)
    for app in config.apps.values():
        if app.repository and app.repository.startswith("/") and not Path(app.repository).exists():
            yield (
                f"apps.{app.name}.repository: {app.repository} does not exist; one at GitHub is written "
                "https://github.com/acme/blog.git or git@github.com:acme/blog.git"
            )
        for where, step in _steps(app):
            if word := looks_like_shell(step.argv):
                yield (
                    f'{where}: "{word}" means nothing here, as steps run without a shell; '
                    "make it two steps, or a table with shell = true"
                )
        if app.command and (word := looks_like_shell(app.command)):
            yield f'apps.{app.name}.command: "{word}" means nothing here, as a server runs without a shell'
    if path is not None and any(_telling_values(config)) and path.stat().st_mode & 0o044:
        yield f"{path} holds secrets (env) and can be read by others: chmod 600 {path}"


def _warnings_of_hooks(config: Config) -> Iterator[str]:
    for hook in config.hooks:
        if hook.api and not hook.token and GITHUB not in hook.only_from:
            yield f"hooks.{hook.name}.api: nothing is asked there without a token"
        if not _apps_of(config, hook):
            yield f"hooks.{hook.name}: no app uses it"


def _same_secrets(config: Config, hooks: Iterable[Hook]) -> Iterator[str]:
    """A secret that is there twice: whoever meant to change it has not."""
    for hook, known in zip(config.hooks, hooks, strict=True):
        first: dict[bytes, str] = {}
        for source, key in zip(hook.secrets, known.keys, strict=True):
            if (other := first.setdefault(key, source.where)) != source.where:
                yield f"{source.where}: is the same secret as {other}: remove one of them, or change it"


# --- the state directory


def prepare_state(path: Path, apps: Iterable[AppConfig] = ()) -> None:
    """Make the state directory and those in it, for nobody but us. Raises ``ConfigError``.

    The account of an app with a ``user`` may pass through to that app's own directory.
    """
    accounts = {app.name: app.user for app in apps if app.user}
    try:
        check_state(path)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Once passable it stays so: a server that runs under an account may be about to read its files.
        passed = PASSABLE if accounts or stat.S_IMODE(path.stat().st_mode) == PASSABLE else 0o700
        path.chmod(passed)
        for name in _STATE_DIRECTORIES:
            (path / name).mkdir(mode=0o700, exist_ok=True)
        (path / "apps").chmod(passed)
        for app, account in accounts.items():
            _let_in(path / "apps" / app, account)
    except OSError as error:
        raise ConfigError([Fault("state", f"{path} cannot be made: {error.strerror}")]) from error
    except (ValueError, NoSuchAccount) as error:
        raise ConfigError([Fault("state", str(error))]) from error


def _let_in(directory: Path, account: str) -> None:
    """An app's own directory, which its account may enter: no other, and what is in it stays ours to change."""
    directory.mkdir(mode=0o700, exist_ok=True)
    os.chown(directory, -1, account_of(account).gid)
    directory.chmod(0o710)
