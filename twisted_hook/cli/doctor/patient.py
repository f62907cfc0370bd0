"""What ``hookdeploy doctor`` examines: a configuration, the server that may run by it, and the account that it runs as.

Commands run as that account, with that environment, as far as we may. Nothing here changes anything.
"""

from __future__ import annotations

import os
import pwd
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from twisted_hook.accounts import Account
from twisted_hook.boundaries import CommandRunner
from twisted_hook.cli.client import Api, ApiError, NotRunning
from twisted_hook.commands import Ambient
from twisted_hook.config import Config, Mentions, Reading, read, read_environment
from twisted_hook.model import Command, CommandResult
from twisted_hook.process import STDOUT_CAP
from twisted_hook.redaction import Redactor, clean
from twisted_hook.survey import Survey, content

LIMIT = 15.0
"""Seconds that one look may take that waits for another machine."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Running:
    """What the running server says of itself."""

    pid: int
    version: str
    apps: Mapping[str, Mapping[str, Any]]
    """As the API shows them, by name."""


@dataclass(frozen=True, slots=True)
class Patient:
    """All that the checks look at."""

    config: Config | None
    """None where the file means nothing."""
    source: Path | None
    """The file; None where the environment is the configuration."""
    state: Path | None
    running: Running | None
    silence: str
    """Why nothing is known of a running server; empty where there is none."""
    environ: Mapping[str, str] = field(repr=False)
    """The service's, as far as it can be known."""
    owner: Account | None
    """Whose the state directory is; None where it is ours."""
    tokens: Mapping[str, str] = field(repr=False)
    """With which a forge's API is asked, by the name of the hook."""
    redactor: Redactor

    @property
    def user(self) -> str:
        """As whom the service works."""
        return self.owner.name if self.owner else name_of(os.geteuid())

    @property
    def becomes(self) -> Account | None:
        """The account as which commands must run to be as good as the service's; None where that is us, or cannot."""
        return self.owner if os.geteuid() == 0 else None

    @property
    def ambient(self) -> Ambient:
        return Ambient.from_environ(self.environ)

    @property
    def ssh_directory(self) -> Path:
        """ssh goes by the account, and not by ``$HOME`` (ssh(1), FILES)."""
        return (self.owner.home if self.owner else Path(pwd.getpwuid(os.geteuid()).pw_dir)) / ".ssh"

    def as_user(self, command: str) -> str:
        """A command line that a person may paste to have it run as the service's user."""
        return f"sudo -u {shlex.quote(self.owner.name)} -H sh -c {shlex.quote(command)}" if self.owner else command

    def ask(self, *argv: str, env: Mapping[str, str] | None = None, timeout: float = inf) -> CommandResult:
        """What a program of this machine says, run as the service's user."""
        ambient = self.ambient
        told = {"PATH": ambient.path, "HOME": ambient.home, "LC_ALL": "C", **(env or {})}
        if ambient.ssh_auth_sock:
            told["SSH_AUTH_SOCK"] = ambient.ssh_auth_sock
        return run_to_its_end(Command(argv[0], argv, told, timeout=timeout), self.becomes)

    @property
    def runner(self) -> CommandRunner:
        """Runs git as the service does, for what is written for the server; see ``finished``."""
        return WaitingRunner(self.becomes)


def name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# --- commands


@dataclass(frozen=True, slots=True)
class WaitingRunner:
    """A ``CommandRunner`` that waits, for a thread that has nothing else to do."""

    account: Account | None

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        return run_to_its_end(command, self.account)


_: Callable[[Account | None], CommandRunner] = WaitingRunner


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that waits for nothing but a ``WaitingRunner``."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("it waits for a reactor")


def run_to_its_end(command: Command, account: Account | None) -> CommandResult:
    """Run it in a session of its own, at most so long as it may and ``LIMIT`` says, and leave none of its family."""
    began = time.monotonic()

    def result(status: int | None, said: bytes = b"", tail: str = "", **how: Any) -> CommandResult:
        ended = {"signal": None, "timed_out": False, **how}
        return CommandResult(command, status, seconds=time.monotonic() - began, stdout=said, tail=clean(tail), **ended)

    try:
        process = subprocess.Popen(
            command.argv,
            env=dict(command.env),
            cwd=command.cwd or "/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            **_becoming(account),
        )
    except OSError as error:
        return result(None, could_not_start=f"{command.argv[0]}: {error.strerror}")
    try:
        said, complained = process.communicate(timeout=min(command.timeout, LIMIT))
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=1.0)  # what has left the family may hold the pipes for good
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()
        return result(None, timed_out=True)
    tail = complained.decode("utf-8", "replace")
    if process.returncode < 0:
        return result(None, said[:STDOUT_CAP], tail, signal=-process.returncode)
    return result(process.returncode, said[:STDOUT_CAP], tail)


def _becoming(account: Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    groups = os.getgrouplist(account.name, account.gid)
    return {"user": account.uid, "group": account.gid, "extra_groups": groups}


# --- who it is


def meet(config: Path | None, state: Path | None, environ: Mapping[str, str]) -> Patient:
    """The patient that is meant: by its configuration, else by the server that works in ``state``."""
    running, silence, source = _server_in(state) if state else (None, "", None)
    source = config or source
    reading = _reading(source, environ)
    if state is None and reading.mentions.state is not None:
        state = reading.mentions.state.path
        running, silence, source_of_server = _server_in(state)
        source = source or source_of_server
    owner = _owner(state)
    environ = _environment(running, owner, environ)
    if source is None:
        reading = _reading(None, environ)
    tokens = _tokens(reading, environ)
    return Patient(
        config=reading.config,
        source=source and source.absolute(),
        state=state,
        running=running,
        silence=silence,
        environ=environ,
        owner=owner,
        tokens=tokens,
        redactor=Redactor(tokens.values()),
    )


def _reading(source: Path | None, environ: Mapping[str, str]) -> Reading:
    if source is None:
        return read_environment(environ, Path.cwd())
    try:
        return read(content(source).decode("utf-8-sig"), source.absolute().parent)
    except (OSError, ValueError):
        return Reading(None, (), Mentions())  # the check of the configuration says so


def _server_in(state: Path) -> tuple[Running | None, str, Path | None]:
    """The running server, else why it cannot be asked; and its configuration."""
    with closing(Api(state)) as api:
        try:
            said = api.get("/server")
            apps = {str(app["name"]): app for app in api.get("/apps")}
            source = Path(said["config"]) if said["config"] else None
            return Running(int(said["pid"]), str(said["version"]), apps), "", source
        except NotRunning:
            return None, "", None
        except (ApiError, LookupError, TypeError, ValueError) as error:
            return None, clean(str(error)), None


def _owner(state: Path | None) -> Account | None:
    """Whose the state directory is, if not ours."""
    with suppress(OSError, KeyError):
        if state is not None and (uid := state.stat().st_uid) != os.geteuid():
            found = pwd.getpwuid(uid)
            return Account(found.pw_name, found.pw_uid, found.pw_gid, Path(found.pw_dir))
    return None


def _environment(running: Running | None, owner: Account | None, environ: Mapping[str, str]) -> Mapping[str, str]:
    """The running server's own, else what a service of that account would have."""
    if running is not None:
        with suppress(OSError):
            return dict(_variables(Path(f"/proc/{running.pid}/environ").read_bytes()))
    if owner is None:
        return environ
    own = {name: value for name, value in environ.items() if name not in ("SSH_AUTH_SOCK", "XDG_CONFIG_HOME")}
    return {**own, "HOME": str(owner.home)}


def _variables(block: bytes) -> Iterator[tuple[str, str]]:
    for entry in block.split(b"\0"):
        name, separator, value = os.fsdecode(entry).partition("=")
        if separator:
            yield name, value


def _tokens(reading: Reading, environ: Mapping[str, str]) -> dict[str, str]:
    survey = Survey(environ)
    survey.look(Mentions(tokens=reading.mentions.tokens))
    hooks = reading.config.hooks if reading.config else ()
    return {
        hook.name: survey.tokens[hook.token.where] for hook in hooks if hook.token and hook.token.where in survey.tokens
    }
