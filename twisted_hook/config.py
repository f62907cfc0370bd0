"""The configuration: text or environment variables go in, a frozen ``Config`` or every fault comes out.

Pure: no file is opened, no secret is read, and no environment but the one that is handed in is looked at. What the
configuration speaks of out there is listed as ``Mentions``, for ``configfile`` to look at.
"""

from __future__ import annotations

import os.path
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from pydantic import SecretBytes

from twisted_hook import addresses, configschema, configvalues
from twisted_hook.configrules import CLAIMED, broken_rules, tables
from twisted_hook.configschema import (
    AppTable,
    Fault,
    FileTable,
    HookTable,
    SecretTable,
    ServerTable,
    StepTable,
    key_path,
)

__all__ = [
    "AppConfig",
    "Config",
    "ConfigError",
    "DashboardConfig",
    "Fault",
    "HookConfig",
    "Mention",
    "Mentions",
    "NamedAccount",
    "Reading",
    "SecretSource",
    "ServerConfig",
    "StepConfig",
    "from_environment",
    "least_free",
    "parse",
    "read",
    "read_environment",
]

USUAL_POLL = 300.0
"""Seconds between two looks at a remote, where nothing else is said."""
USUAL_FLOOR = 256 * 1024**2
"""Bytes that must be free before a deployment begins; on a small disk, a twentieth of it."""
_T = TypeVar("_T")
_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})


class ConfigError(Exception):
    """The configuration cannot be used: all that is wrong with it, and what it was read from."""

    def __init__(self, faults: Iterable[Fault], source: str = "") -> None:
        self.faults = tuple(faults)
        self.source = source
        super().__init__(self.faults, source)

    def __str__(self) -> str:
        """One fault a line, each behind the name of the file."""
        return "\n".join(f"{self.source}: {fault}" if self.source else str(fault) for fault in self.faults)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The public door."""

    listen: tuple[str, ...] = ("tcp:8000",)
    """Twisted endpoint strings, their paths absolute."""
    public_url: str | None = None
    """Where the hooks are reached from outside, without a slash at the end."""
    trusted_proxies: tuple[str, ...] = ()
    """Whose word on where a request comes from is believed: networks, e.g. ``127.0.0.1/32``, and ``unix``."""
    max_body: int = 26_214_400
    """Bytes."""
    min_free: int | None = None
    """Bytes that must be free on the disk of the state directory before a deployment begins; None is a small part."""
    max_builds: int | None = None
    """How many builds may run at a time; None is one for each core."""
    history: float = 90 * 86_400.0
    """Seconds for which the journal keeps what has ended."""
    history_rows: int = 10_000
    """How many deliveries, and how many deployments, the journal keeps at most."""


@dataclass(frozen=True, slots=True)
class DashboardConfig:
    """The door of the API and of the pages; without endpoints there is only the unix socket."""

    listen: tuple[str, ...] = ()
    """Twisted endpoint strings, their paths absolute."""
    hosts: tuple[str, ...] = ()
    """The names under which it may be reached, beside ``localhost`` and that of the public URL; in lower case."""


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where a secret, or a token, is to be found: exactly one of the four."""

    file: Path | None = None
    env: str | None = None
    credential: str | None = None
    literal: SecretBytes | None = None
    """The secret itself, where the environment is the configuration."""
    where: str = ""
    """The key path at which it is configured."""

    @property
    def words(self) -> str:
        """What a person would call it, e.g. ``file /etc/hookdeploy/hook.secret``."""
        found = ((kind, getattr(self, kind)) for kind in ("file", "env", "credential"))
        return next((f"{kind} {name}" for kind, name in found if name is not None), self.where)


@dataclass(frozen=True, slots=True)
class HookConfig:
    """One address at which a forge may deliver."""

    name: str
    path: str
    forge: str
    secrets: tuple[SecretSource, ...]
    allow_sha1: bool = False
    token: SecretSource | None = None
    """For the forge's API, to ask for failed deliveries again; only GitHub's."""
    api: str | None = None
    """Where that API is, e.g. ``https://github.example.com/api/v3``; None is known by the repository's host."""
    only_from: tuple[str, ...] = ()
    """From where alone it is delivered to: networks, and ``github`` for what GitHub publishes; empty: anywhere."""


@dataclass(frozen=True, slots=True)
class StepConfig:
    """One command of a build or of a migration."""

    name: str
    argv: tuple[str, ...]
    timeout: float | None = None
    """Seconds; None means the app's ``step_timeout``."""
    env: Mapping[str, str] = field(default_factory=lambda: _NO_SETTINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """One app: what is deployed, and how it is built, served and watched. Durations are seconds."""

    name: str
    hook: str
    """The name of its ``HookConfig``."""
    repository: str | None = None
    """What git fetches from; in place it is the clone's own origin."""
    deploy_key: Path | None = None
    """The private key with which ssh reads it; None is any that ssh finds by itself."""
    names: tuple[str, ...] = ()
    """What deliveries may call the repository; none means any name."""
    branch: str | None = None
    tag: str | None = None
    """A pattern: the newest tag that matches is deployed, instead of a branch."""
    paths: tuple[str, ...] = ()
    """Patterns, as ``Checkout.touches`` has them: it is deployed only if such a file changed; none means any file."""
    poll: float = USUAL_POLL
    """Seconds between two looks at the remote; 0 turns them off."""
    mode: Literal["release", "in-place"] = "release"
    path: Path | None = None
    """The clone, in place."""
    update: Literal["rebase", "ff-only", "reset"] = "rebase"
    build: Literal["auto"] | tuple[StepConfig, ...] = "auto"
    migrate: tuple[StepConfig, ...] = ()
    """Run once in a deployment, after the build and before the swap."""
    wsgi: str | None = None
    command: tuple[str, ...] = ()
    """The server, where it is not gunicorn: ``{fd}`` in it is the number of the inherited listening socket."""
    bind: str = "127.0.0.1:8080"
    workers: int = 2
    gunicorn: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: _NO_SETTINGS)
    env_file: Path | None = None
    health: str | None = None
    health_timeout: float = 30.0
    probation: float = 5.0
    """So long old and new serve together, and the new one is watched; 0 swaps at once."""
    probation_deaths: int = 1
    """So many deaths of workers end a probation; 0 does not count them."""
    probation_errors: int = 3
    """So many answers of 500 and above end a probation; 0 does not count them."""
    drain: float = 30.0
    keep: int = 5
    step_timeout: float = 900.0
    shared: tuple[str, ...] = ()
    """Paths in the tree that every release has in common; one that ends in a slash is a directory."""
    user: str | None = None
    """The account that steps and server run as; None is hookdeploy's own."""
    nice: int = 10
    """How much steps step back for the app that runs; 0 not at all, 19 most."""

    @property
    def served(self) -> bool:
        """Whether it has a server."""
        return self.wsgi is not None or bool(self.command)


@dataclass(frozen=True, slots=True)
class Config:
    """All that hookdeploy was told, without the secrets themselves."""

    state: Path
    server: ServerConfig
    hooks: tuple[HookConfig, ...]
    apps: Mapping[str, AppConfig]
    """By name, in the order of the file."""
    dashboard: DashboardConfig = DashboardConfig()


@dataclass(frozen=True, slots=True)
class Mention:
    """A path in the world, and the key that speaks of it."""

    where: str
    path: Path
    follows_head: bool = False
    """It is a clone whose own branch is to be deployed, since none is configured."""


@dataclass(frozen=True, slots=True)
class NamedAccount:
    """A user of this machine, and the key that speaks of it."""

    where: str
    name: str


@dataclass(frozen=True, slots=True)
class Mentions:
    """What a configuration speaks of out there; also that of one with faults, as far as it can be told."""

    state: Mention | None = None
    secrets: tuple[SecretSource, ...] = ()
    tokens: tuple[SecretSource, ...] = ()
    """Those with which forges are asked; of the same sources as secrets."""
    env_files: tuple[Mention, ...] = ()
    clones: tuple[Mention, ...] = ()
    accounts: tuple[NamedAccount, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What came of reading a configuration: a config, or faults."""

    config: Config | None
    faults: tuple[Fault, ...]
    mentions: Mentions


def least_free(min_free: int | None, total: int) -> int:
    """Bytes that must be free before a deployment begins, on a disk of ``total`` bytes."""
    return min(USUAL_FLOOR, total // 20) if min_free is None else min_free


def parse(text: str, base: Path) -> Config:
    """The configuration that the text of a hookdeploy.toml in the directory ``base`` means, or ``ConfigError``."""
    return _config_of(read(text, base))


def from_environment(environ: Mapping[str, str], base: Path = Path()) -> Config:
    """The configuration that the environment means, or ``ConfigError``. Relative paths begin at ``base``."""
    return _config_of(read_environment(environ, base))


def _config_of(reading: Reading) -> Config:
    if reading.config is None:
        raise ConfigError(reading.faults)
    return reading.config


# --- hookdeploy.toml


def read(text: str, base: Path) -> Reading:
    """As ``parse``, but faults come as a value, with what can be told of a faulty configuration."""
    try:
        raw = _toml(text)
    except ConfigError as error:
        return Reading(None, error.faults, Mentions())
    table = configschema.validate(raw, base)
    misfits = table if isinstance(table, tuple) else ()
    known = {fault.path for fault in misfits}
    faults = (*misfits, *(fault for fault in broken_rules(raw) if fault.path not in known))
    config = _config(table) if isinstance(table, FileTable) and not faults else None
    return Reading(config, faults, _mentions(raw, base))


def _toml(text: str) -> dict[str, object]:
    try:
        text.encode()
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_fault(text, str(error))]) from None
    except UnicodeEncodeError:
        raise ConfigError([Fault("", "is not Unicode text")]) from None
    except ValueError:
        raise ConfigError([Fault("", "has a number of too many digits")]) from None
    except RecursionError:
        raise ConfigError([Fault("", "is nested too deeply")]) from None


def _syntax_fault(text: str, said: str) -> Fault:
    """tomllib's words, with line and column in front; they hold nothing of the text but single characters."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", said, re.DOTALL)
    message = match[1] if match else said
    if match and match[2]:
        line, column = int(match[2]), int(match[3])
    else:
        lines = text.rstrip().split("\n")
        line, column = len(lines), len(lines[-1]) + 1
    return Fault(f"line {line}, column {column}", message[:1].lower() + message[1:])


def _config(file: FileTable) -> Config:
    hooks = [_hook(name, table) for name, table in file.hooks.items()]
    hooks += [_own_hook(name, table.secret) for name, table in file.apps.items() if table.secret is not None]
    apps = {name: _app(name, table) for name, table in file.apps.items()}
    dashboard = DashboardConfig(tuple(file.dashboard.listen), tuple(file.dashboard.hosts))
    return Config(file.state, _server(file.server), tuple(hooks), MappingProxyType(apps), dashboard)


def _server(table: ServerTable) -> ServerConfig:
    return ServerConfig(
        listen=tuple(table.listen),
        public_url=table.public_url,
        trusted_proxies=tuple(table.trusted_proxies),
        max_body=table.max_body,
        min_free=table.min_free,
        max_builds=table.max_builds,
        history=table.history,
        history_rows=table.history_rows,
    )


def _hook(name: str, table: HookTable) -> HookConfig:
    sources = (
        _source(secret, key_path(("hooks", name, "secrets", place))) for place, secret in enumerate(table.secrets)
    )
    senders = tuple(table.only_from or ())
    token = None if table.token is None else _source(table.token, key_path(("hooks", name, "token")))
    path = table.path or f"/hooks/{name}"
    return HookConfig(name, path, table.forge, tuple(sources), table.allow_sha1, token, table.api, senders)


def _own_hook(app: str, secrets: Sequence[SecretTable]) -> HookConfig:
    sources = (_source(secret, where) for where, secret in _placed(app, secrets))
    return HookConfig(app, f"/hooks/{app}", "github", tuple(sources))


def _placed(app: str, secrets: Sequence[_T]) -> Iterator[tuple[str, _T]]:
    """The secrets of an app's own hook, each with its key path; a single one has no place, as it may be in no list."""
    for place, secret in enumerate(secrets):
        yield key_path(("apps", app, "secret", *((place,) if len(secrets) > 1 else ()))), secret


def _source(table: SecretTable, where: str) -> SecretSource:
    return SecretSource(table.file, table.env, table.credential, where=where)


def _app(name: str, table: AppTable) -> AppConfig:
    default_names = [configvalues.name_of(table.repository)] if table.repository else []
    return AppConfig(
        name=name,
        hook=table.hook or name,
        repository=table.repository,
        deploy_key=table.deploy_key,
        names=tuple(table.names or default_names),
        branch=table.branch,
        tag=table.tag,
        paths=tuple(table.paths),
        poll=table.poll,
        mode=table.mode,
        path=table.path,
        update=table.update or "rebase",
        build="auto" if table.build is None else tuple(_step(step) for step in table.build),
        migrate=tuple(_step(step) for step in table.migrate),
        wsgi=table.wsgi,
        command=table.command,
        bind=table.bind,
        workers=table.workers,
        gunicorn=tuple(table.gunicorn),
        env=MappingProxyType(table.env),
        env_file=table.env_file,
        health=table.health,
        health_timeout=table.health_timeout,
        probation=table.probation,
        probation_deaths=table.probation_deaths,
        probation_errors=table.probation_errors,
        drain=table.drain,
        keep=table.keep,
        step_timeout=table.step_timeout,
        shared=tuple(table.shared),
        user=table.user,
        nice=table.nice,
    )


def _step(table: StepTable) -> StepConfig:
    argv = configvalues.argv(table.run, shell=table.shell)
    said = table.run if isinstance(table.run, str) else configvalues.joined(argv)
    return StepConfig(table.name or " ".join(said.split()), argv, table.timeout, MappingProxyType(table.env))


def _attempt(function: Callable[..., _T], *arguments: object, **named: object) -> _T | None:
    """What the function makes of a value, or None if it refuses."""
    try:
        return function(*arguments, **named)
    except ValueError:
        return None


def _path(value: object, base: Path) -> Path | None:
    return _attempt(configvalues.path, value, base) if isinstance(value, str) else None


def _mentions(raw: Mapping[str, object], base: Path) -> Mentions:
    state = _path(raw.get("state"), base)
    env_files, clones, accounts = [], [], []
    for app, table in tables(raw, "apps"):
        if env_file := _path(table.get("env_file"), base):
            env_files.append(Mention(key_path(("apps", app, "env_file")), env_file))
        if (clone := _path(table.get("path"), base)) and table.get("mode") == "in-place":
            clones.append(Mention(key_path(("apps", app, "path")), clone, follows_head="branch" not in table))
        user = table.get("user")
        if isinstance(user, str) and _attempt(configvalues.line, user) is not None:
            accounts.append(NamedAccount(key_path(("apps", app, "user")), user))
    return Mentions(
        state=Mention("state", state) if state else None,
        secrets=tuple(_sources(_secrets_written(raw), base)),
        tokens=tuple(_sources(_tokens_written(raw), base)),
        env_files=tuple(env_files),
        clones=tuple(clones),
        accounts=tuple(accounts),
    )


def _secrets_written(raw: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for hook, table in tables(raw, "hooks"):
        secrets = table.get("secrets")
        for place, secret in enumerate(secrets if isinstance(secrets, list) else ()):
            yield key_path(("hooks", hook, "secrets", place)), secret
    for app, table in tables(raw, "apps"):
        secret = table.get("secret")
        yield from _placed(app, secret if isinstance(secret, list) else [secret])


def _tokens_written(raw: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    return ((key_path(("hooks", hook, "token")), table.get("token")) for hook, table in tables(raw, "hooks"))


def _sources(written: Iterable[tuple[str, object]], base: Path) -> Iterator[SecretSource]:
    for where, secret in written:
        if source := _attempt(SecretTable.model_validate, secret, context=base):
            yield _source(source, where)


# --- the environment


class _Variables:
    """Environment variables as they are asked for; what is wrong with them is collected."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.faults: list[Fault] = []

    def optional(self, name: str, check: Callable[[str], _T]) -> _T | None:
        """The checked value; None if it is unset, empty or wrong."""
        value = self._environ.get(name)
        try:
            return check(value) if value else None
        except ValueError as error:
            self.faults.append(Fault(name, str(error)))
            return None

    def required(self, name: str, check: Callable[[str], _T], *, meaning: str) -> _T | None:
        """As ``optional``, but it must be there."""
        if not self._environ.get(name):
            self.faults.append(Fault(name, f"is {'empty' if name in self._environ else 'not set'}: {meaning}"))
        return self.optional(name, check)


def _zero_or_one(value: str) -> bool:
    if value not in {"0", "1"}:
        raise ValueError(f"must be 0 or 1, not {configvalues.shown(value)}")
    return value == "1"


def _plain_door(value: str, base: Path) -> str:
    """An endpoint at which nobody claims an address: here nothing says whose word counts."""
    if addresses.is_claimed(value):
        raise ValueError(f"{CLAIMED} in a hookdeploy.toml")
    return addresses.endpoint(value, base)


def app_name(directory: str) -> str:
    """The name of an app that is to be called as a directory or a repository is."""
    return re.sub(r"[^a-z0-9_-]+", "-", directory.lower()).strip("-_")[:64] or "app"


def read_environment(environ: Mapping[str, str], base: Path = Path()) -> Reading:
    """As ``from_environment``, but faults come as a value."""
    variables = _Variables(environ)
    hook = _only_hook(variables)
    app = _only_app(variables, hook.name, base)
    state = variables.optional("HOOKDEPLOY_STATE", lambda value: configvalues.path(value, base))
    if state is None and app.path is not None:
        state = app.path.parent / f".hookdeploy-{app.name}"
    listen = variables.optional("HOOK_LISTEN", lambda value: _plain_door(value, base)) or "tcp:8000"
    dashboard = variables.optional("DASHBOARD_LISTEN", lambda value: _plain_door(value, base))
    mentions = Mentions(
        state=Mention("HOOKDEPLOY_STATE", state) if state else None,
        secrets=hook.secrets if environ.get("GITHUB_SECRET") else (),
        clones=(Mention("REPO_PATH", app.path, follows_head=True),) if app.path else (),
    )
    if state is None or variables.faults:
        return Reading(None, tuple(variables.faults), mentions)
    shown = DashboardConfig((dashboard,) if dashboard else ())
    config = Config(state, ServerConfig((listen,)), (hook,), MappingProxyType({app.name: app}), shown)
    return Reading(config, (), mentions)


def _only_hook(variables: _Variables) -> HookConfig:
    secret = variables.required(
        "GITHUB_SECRET", lambda value: value.encode("utf-8", "surrogateescape"), meaning="the webhook's secret"
    )
    allow_sha1 = variables.optional("GITHUB_ALLOW_SHA1", _zero_or_one)
    source = SecretSource(literal=SecretBytes(secret or b""), where="GITHUB_SECRET")
    return HookConfig("github", "/github", "github", (source,), bool(allow_sha1))


def _only_app(variables: _Variables, hook: str, base: Path) -> AppConfig:
    clone = variables.required(
        "REPO_PATH",
        lambda value: Path(os.path.normpath(configvalues.path(value, base))),
        meaning="the existing clone that is to be kept up to date",
    )
    poll = variables.optional("APP_POLL", configvalues.poll)
    return AppConfig(
        name=app_name(clone.name if clone else ""),
        hook=hook,
        mode="in-place",
        path=clone,
        build=(),
        poll=USUAL_POLL if poll is None else poll,
        wsgi=variables.optional("APP_MODULE", configvalues.wsgi),
        bind=variables.optional("APP_BIND", lambda value: addresses.bind(value, base)) or "127.0.0.1:8080",
    )
