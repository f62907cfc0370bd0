"""Looks at what a configuration speaks of on this machine: secrets, env_files, clones, the state directory, git.

Reads only. What it finds wrong becomes a fault with the key that spoke of it; a secret is never part of one.
"""

from __future__ import annotations

import io
import os
import pwd
import re
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from twisted_hook import configvalues
from twisted_hook.accounts import Account, NoSuchAccount, account_of
from twisted_hook.commands import Ambient
from twisted_hook.config import ConfigError, Fault, Mention, Mentions, NamedAccount, SecretSource
from twisted_hook.localgit import LocalClone, NotUsable, check_git, look_at_clone

_LARGEST_FILE = 1 << 20
_SHORT_SECRET = 16
_TOKEN = re.compile("[!-~]+")
_OTHERS = 0o077
PASSABLE = 0o711
"""The mode of what the account of an app must pass through: it may enter, and neither list nor write."""


def _open_at_once(path: str, flags: int) -> int:
    """As usual, but a FIFO without a writer does not hold up the start."""
    return os.open(path, flags | os.O_NONBLOCK)


def content(path: Path, check: Callable[[os.stat_result], None] = lambda _status: None) -> bytes:
    """A regular file's bytes, if ``check`` does not object. ``ValueError`` says what else it is."""
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        if status.st_size > _LARGEST_FILE:
            raise ValueError(f"is larger than {_LARGEST_FILE} bytes")
        check(status)
        return file.read()


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of an env_file: ``KEY=value`` lines, comments, optional quotes and ``export``; nothing is expanded.

    Raises ``ConfigError``, which never repeats a value.
    """
    try:
        bindings = list(parse_stream(io.StringIO(content(path).decode())))
        return dict(_variable(binding) for binding in bindings if binding.key or binding.error)
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        fault = "is not UTF-8 text"
    except ValueError as error:
        fault = str(error)
    raise ConfigError([Fault("", fault)], str(path))


def _variable(binding: Binding) -> tuple[str, str]:
    written = binding.original.string
    number = binding.original.line + written[: len(written) - len(written.lstrip())].count("\n")
    if binding.key is None or binding.value is None:
        raise ValueError(f"line {number} is not KEY=value")
    try:
        return configvalues.declared_variable(binding.key), configvalues.text(binding.value)
    except ValueError as error:
        raise ValueError(f"line {number}: {configvalues.shown(binding.key)} {error}") from None


@dataclass
class Survey:
    """Looks at what a configuration speaks of, and collects what it finds, good and bad."""

    environ: Mapping[str, str]
    faults: list[Fault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    secrets: dict[str, bytes] = field(default_factory=dict)
    """By the key path at which each is configured."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Likewise."""
    clones: dict[Path, LocalClone] = field(default_factory=dict)
    env_values: list[str] = field(default_factory=list)

    def look(self, mentions: Mentions) -> None:
        for secret in mentions.secrets:
            self._secret(secret)
        for token in mentions.tokens:
            self._token(token)
        for env_file in mentions.env_files:
            self._env_file(env_file)
        if self._git():
            for clone in mentions.clones:
                self._clone(clone)
        if mentions.state is not None:
            self._state(mentions.state, [clone.path for clone in mentions.clones])
        for account in mentions.accounts:
            self._account(account, mentions.state)

    def _fault(self, where: str, message: str) -> None:
        self.faults.append(Fault(where, message))

    def _git(self) -> bool:
        try:
            check_git(Ambient.from_environ(self.environ))
        except NotUsable as error:
            self._fault("git", str(error))
            return False
        return True

    def _secret(self, source: SecretSource) -> None:
        secret = self._content(source, without="a hook without a secret would believe anybody")
        if secret is None:
            return
        self.secrets[source.where] = secret
        if len(secret) < _SHORT_SECRET:
            self.warnings.append(
                f"{source.where}: the secret is only {len(secret)} bytes long and may be guessed; "
                f"take {_SHORT_SECRET} or more (openssl rand -hex 32)"
            )

    def _token(self, source: SecretSource) -> None:
        token = self._content(source, without="remove this key if there is none")
        if token is None:
            return
        word = token.strip().decode("ascii", "replace")
        if _TOKEN.fullmatch(word):
            self.tokens[source.where] = word
        else:  # it becomes part of a header
            self._fault(source.where, "is no token: one word of ASCII letters, digits and signs, and nothing else")

    def _content(self, source: SecretSource, *, without: str) -> bytes | None:
        """What is there; a fault where it cannot be had, or is empty: ``without`` says what that would mean."""
        try:
            content, place = _read(source, self.environ)
        except OSError as error:
            self._fault(source.where, f"{source.file or source.credential} cannot be read: {error.strerror}")
        except ValueError as error:
            self._fault(source.where, str(error))
        else:
            if content:
                return content
            self._fault(source.where, f"{place} is empty: {without}")
        return None

    def _env_file(self, mention: Mention) -> None:
        try:
            self.env_values += read_env_file(mention.path).values()
        except ConfigError as error:
            self._fault(mention.where, str(error))
            return
        if mention.path.stat().st_mode & _OTHERS:
            self.warnings.append(
                f"{mention.where}: {mention.path} can be read by others; if it holds secrets: chmod 600 {mention.path}"
            )

    def _clone(self, mention: Mention) -> None:
        try:
            clone = look_at_clone(Ambient.from_environ(self.environ), mention.path)
        except NotUsable as error:
            self._fault(mention.where, str(error))
            return
        except OSError as error:
            self._fault(mention.where, f"{mention.path} cannot be used: {error.strerror}")
            return
        self.clones[mention.path] = clone
        if clone.origin is None:
            self._fault(mention.where, f"{mention.path} has no remote named origin: git remote add origin …")
        elif mention.follows_head and clone.branch is None:
            self._fault(
                mention.where, f"{mention.path} is on no branch (detached HEAD): check one out, or configure the branch"
            )

    def _state(self, mention: Mention, clones: Iterable[Path]) -> None:
        for clone in clones:
            # Not Path.resolve: on Python 3.11 a loop of links is a RuntimeError.
            if Path(os.path.realpath(mention.path)).is_relative_to(os.path.realpath(clone)):
                self._fault(mention.where, f"{mention.path} lies inside the deployed clone {clone}: put it beside it")
                return
        try:
            check_state(mention.path)
        except OSError as error:
            self._fault(mention.where, f"{mention.path} cannot be used: {error.strerror}")
        except ValueError as error:
            self._fault(mention.where, str(error))

    def _account(self, named: NamedAccount, state: Mention | None) -> None:
        name = configvalues.shown(named.name)
        if os.geteuid() != 0:
            us = _user(os.geteuid())
            self._fault(
                named.where,
                f"needs root: hookdeploy runs as {us}, who can run nothing as {name}; start it as root, or remove this",
            )
            return
        try:
            account = account_of(named.name)
        except NoSuchAccount as error:
            self._fault(named.where, str(error))
            return
        needed = [Path(__file__), Path(os.path.realpath(sys.executable)), *([state.path] if state else [])]
        for path in needed:  # modes do not tell all (acl(5)), so this is no fault
            if closed := _closed_to(account, path):
                self.warnings.append(
                    f"{named.where}: {name} cannot enter {closed}, and needs {path}: chmod o+x {closed}"
                )


def _closed_to(account: Account, path: Path) -> Path | None:
    """The uppermost directory above this path that the account may not enter, as far as modes tell."""
    groups = os.getgrouplist(account.name, account.gid)
    for directory in reversed(path.absolute().parents):
        try:
            status = directory.stat()
        except OSError:  # it is still to be made
            return None
        owns, shares = status.st_uid == account.uid, status.st_gid in groups
        needed = stat.S_IXUSR if owns else stat.S_IXGRP if shares else stat.S_IXOTH
        if account.uid != 0 and not status.st_mode & needed:
            return directory
    return None


def _read(source: SecretSource, environ: Mapping[str, str]) -> tuple[bytes, str]:
    """What is there, and how to call the place. Raises ``OSError`` or ``ValueError``."""
    if source.literal is not None:
        return source.literal.get_secret_value(), "the secret"
    if source.file is not None:
        return content(source.file, _nobody_else_may_read(source.file)).rstrip(b"\r\n"), str(source.file)
    if source.credential is not None:
        return _credential(source.credential, environ), f"the credential {source.credential}"
    if source.env is None or source.env not in environ:
        raise ValueError(f"the environment variable {source.env} is not set")
    return environ[source.env].encode("utf-8", "surrogateescape"), f"${source.env}"


def _nobody_else_may_read(path: Path) -> Callable[[os.stat_result], None]:
    def check(status: os.stat_result) -> None:
        if status.st_mode & _OTHERS:
            raise ValueError(f"{path} can be read by group or others: chmod 600 {path}")

    return check


def _credential(name: str, environ: Mapping[str, str]) -> bytes:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise ValueError(
            f"there is no credential {name}: $CREDENTIALS_DIRECTORY is set by systemd's LoadCredential= only"
        )
    return content(Path(directory, name)).rstrip(b"\r\n")


def check_state(path: Path) -> None:
    """Whether this can be our state directory. Raises ``OSError``, or ``ValueError`` with what to do."""
    try:
        status = path.stat()
    except FileNotFoundError:
        _check_creatable(path)
        return
    if not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is not a directory")
    if status.st_uid != os.geteuid():
        raise ValueError(f"{path} belongs to {_user(status.st_uid)}: chown {_user(os.geteuid())} {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(f"{path} is not writable: chmod 700 {path}")
    # One that was just made, by mkdir or by systemd's StateDirectory=, holds nothing that could have been planted.
    if status.st_mode & _OTHERS not in {0, PASSABLE & _OTHERS} and any(path.iterdir()):
        raise ValueError(f"{path} is open to group or others: chmod 700 {path}")


def _check_creatable(path: Path) -> None:
    if path.is_symlink():
        raise ValueError(f"{path} is a link to nowhere")
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise ValueError(f"{path} cannot be made: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        raise ValueError(
            f"{path} cannot be made: {parent} is not writable; sudo install -d -m 700 -o {_user(os.geteuid())} {path}"
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
