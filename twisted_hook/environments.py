"""Virtual environments, keyed by the content of what defines them: a push that changes no dependency installs nothing.

Touches one app's ``environments`` directory. Where a build is not ``auto`` it only looks for the environment that the
app's own steps have made. What another account has made is run as that account alone, and no link of its is followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from twisted_hook.accounts import Account, NeedsRoot, NoSuchAccount, to_become
from twisted_hook.boundaries import CommandRunner, Environments
from twisted_hook.commands import removal
from twisted_hook.model import Command, Environment, StepFailed, Tree
from twisted_hook.repository import failed

# The forms of pip's requirements files (pip documentation, requirements file format).
_INCLUDED = re.compile(r"^[ \t]*(?:-r|--requirement|-c|--constraint)[ \t=]*([^\s#]+)", re.MULTILINE)
_FOUND_IN = re.compile(r"^[ \t]*(?:-f|--find-links)[ \t=]*([^\s#]+)", re.MULTILINE)
_LOCAL = re.compile(
    r"^[ \t]*(?:-e|--editable|file:|\.|/|(?![a-z+]+://)[\w][^\s#@;\[]*(?:/|\.whl|\.zip|\.tar\.))|@[ \t]*file:",
    re.MULTILINE,
)
"""A requirement that lies in the tree: a path, with or without a dot, or an archive."""
_SOURCE_IN_TREE = re.compile(r"^source = \{ (?:editable|directory) = ", re.MULTILINE)
"""In a uv.lock, a package that lies in the tree; ``virtual`` is one that is not installed."""

COMPLETE = ".complete"
"""The file in an environment that says that all of it is there, and when it was used last."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an environment is made, and what it depends on."""

    name: str
    files: tuple[Path, ...]
    holds_the_project: bool
    """Something of the tree itself is installed too, so that every release needs an environment of its own."""


@dataclass(frozen=True, slots=True)
class KeyedEnvironments:
    """The environments of one app under ``build = "auto"``."""

    directory: Path
    """``<state>/apps/<app>/environments``."""
    interpreter: Path
    """The Python that makes them, and that serves an app which needs none: hookdeploy's own."""
    version: str
    """The full version of that Python."""
    path: str
    """Where ``uv`` is looked for."""
    timeout: float
    keep_newest: int = 5
    """How many are kept, by their last use, besides those for which a kept release asks."""
    user: str | None = None
    """The account that makes them and that owns them, if not ours."""
    nice: int = 0
    """How much that steps back for others."""

    async def prepare(self, run: CommandRunner, tree: Tree, env: Mapping[str, str]) -> Environment:
        recipe = recipe_for(tree.path)
        if recipe is None:
            return found_in(tree.path, self.interpreter)
        directory = self.directory / self._key(recipe, tree.release)
        if not (directory / COMPLETE).exists():
            await self._make(run, recipe, directory, tree, env)
        _mark_as_used(directory)
        return existing(directory)

    def made_for(self, tree: Path, release: str) -> Environment | None:
        """What ``prepare`` has made for a release; None if it is not there, or not whole. Nothing is made."""
        recipe = recipe_for(tree)
        if recipe is None:
            return found_in(tree, self.interpreter)
        directory = self.directory / self._key(recipe, release)
        return existing(directory) if (directory / COMPLETE).exists() else None

    async def keep(self, run: CommandRunner, environment: Environment) -> None:
        """Remove what no kept release asks for and nobody has used for the longest time."""
        if environment.directory is None or environment.directory.parent != self.directory:
            return
        retired = sorted(self.directory.iterdir(), key=_last_used)[: -self.keep_newest]
        asked_for = {environment.directory.name, *(self._asked_for() if retired else ())}
        for directory in retired:
            if directory.name not in asked_for:
                await run.run(removal(self.path, directory, nice=self.nice))

    async def _make(
        self, run: CommandRunner, recipe: Recipe, directory: Path, tree: Tree, env: Mapping[str, str]
    ) -> None:
        if directory.exists():  # half of one, from a run that failed or was cut off
            await run.run(removal(self.path, directory, nice=self.nice))
        account = self._account()
        if account is not None:
            _give_away(directory, account)
            env = {**_without_a_home(account, env), **env}
        for name, argv in self._commands(recipe, directory):
            environment = {**env, "UV_PROJECT_ENVIRONMENT": str(directory)}
            command = Command(name, argv, environment, tree.path, self.timeout, user=self.user, nice=self.nice)
            result = await run.run(command)
            if not result.ok:
                raise failed(f"{name} failed", result)

    def _account(self) -> Account | None:
        """Whose the environments are to be; None if they are ours."""
        try:
            return to_become(self.user)
        except (NoSuchAccount, NeedsRoot) as error:
            raise StepFailed(str(error)) from error

    def _asked_for(self) -> set[str]:
        releases = (self.directory.parent / "releases").glob("*")
        return {self._key(recipe, release.name) for release in releases if (recipe := recipe_for(release))}

    def _key(self, recipe: Recipe, release: str) -> str:
        digest = hashlib.sha256(f"{recipe.name}\0{self.interpreter}\0{self.version}\0".encode())
        for path in recipe.files:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        if recipe.holds_the_project:
            digest.update(release.encode())
        if self.user is not None:
            digest.update(f"\0{self.user}".encode())  # who may change it
        return digest.hexdigest()[:16]

    def _commands(self, recipe: Recipe, directory: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
        uv = shutil.which("uv", path=self.path)
        own, new = str(self.interpreter), str(directory / "bin" / "python")
        what = ("-r", "requirements.txt") if recipe.name == "requirements.txt" else (".",)
        if recipe.name == "uv.lock":
            if uv is None:
                raise StepFailed("the project has a uv.lock, but uv is not installed; install uv or set build")
            yield "uv sync", (uv, "sync", "--frozen", "--no-dev")
        elif uv is not None:
            yield "uv venv", (uv, "venv", "--python", own, str(directory))
            yield "uv pip install", (uv, "pip", "install", "--python", new, *what)
        else:
            yield "python -m venv", (own, "-m", "venv", str(directory))
            yield "pip install", (new, "-m", "pip", "install", "--disable-pip-version-check", *what)


@dataclass(frozen=True, slots=True)
class OwnEnvironments:
    """The environments of an app that builds for itself: ``.venv`` or ``venv`` in its tree, if there is one."""

    interpreter: Path

    async def prepare(self, run: CommandRunner, tree: Tree, env: Mapping[str, str]) -> Environment:
        return found_in(tree.path, self.interpreter)

    async def keep(self, run: CommandRunner, environment: Environment) -> None:
        """Nothing to do: it goes with its tree."""


def recipe_for(tree: Path) -> Recipe | None:
    """What ``build = "auto"`` does with a tree; None where there is nothing to install."""
    project = tree / "pyproject.toml"
    lock, requirements = tree / "uv.lock", tree / "requirements.txt"
    if lock.is_file():
        with_project = (lock, project) if project.is_file() else (lock,)
        return Recipe("uv.lock", with_project, _SOURCE_IN_TREE.search(_text(lock)) is not None)
    if requirements.is_file():
        files = tuple(_with_included(requirements, seen=set()))
        in_tree = any(_LOCAL.search(_text(file)) for file in files)
        return Recipe("requirements.txt", (*files, *_archives(files)), in_tree)
    if project.is_file():
        return Recipe("pyproject.toml", (project,), holds_the_project=True)
    return None


def found_in(tree: Path, interpreter: Path) -> Environment:
    """The environment that stands in a tree, else hookdeploy's own interpreter."""
    for directory in (tree / ".venv", tree / "venv"):
        if (directory / "bin" / "python").exists():
            return existing(directory)
    return Environment(interpreter)


def existing(directory: Path) -> Environment:
    """What there is in a virtual environment."""
    metadata = sorted(directory.glob("lib/python*/site-packages/gunicorn-*.dist-info"))
    version = metadata[-1].name.removeprefix("gunicorn-").removesuffix(".dist-info") if metadata else None
    return Environment(directory / "bin" / "python", directory, version)


def _with_included(file: Path, *, seen: set[Path]) -> Iterator[Path]:
    """A requirements file and those that it includes, as far as they exist."""
    if file.resolve() in seen or not file.is_file():
        return
    seen.add(file.resolve())
    yield file
    for name in _INCLUDED.findall(_text(file)):
        yield from _with_included(file.parent / name, seen=seen)


def _archives(requirements: Iterable[Path]) -> Iterator[Path]:
    """What lies in the directories in which pip is to look for packages."""
    for file in requirements:
        for name in _FOUND_IN.findall(_text(file)):
            yield from sorted(found for found in (file.parent / name).glob("*") if found.is_file())


def _give_away(directory: Path, account: Account) -> None:
    """Make a directory of the account's own; the one in which it stands stays ours, so that no link takes its place."""
    directory.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    directory.mkdir()
    os.chown(directory, account.uid, account.gid)


def _without_a_home(account: Account, env: Mapping[str, str]) -> dict[str, str]:
    """What uv has to be told where it has no home for its cache, which is an error to it; pip goes on without one."""
    home = Path(env.get("HOME", "/"))
    if "UV_CACHE_DIR" in env or "XDG_CACHE_HOME" in env or (home.is_dir() and home.stat().st_uid == account.uid):
        return {}
    return {"UV_NO_CACHE": "1"}


def _mark_as_used(environment: Path) -> None:
    """Write down that all of it is there and used now. Whose it is could have put a link there, or a named pipe."""
    try:
        complete = os.open(environment / COMPLETE, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise StepFailed(f"{environment / COMPLETE} cannot be written: {error.strerror}") from error
    try:
        os.utime(complete)
    finally:
        os.close(complete)


def _last_used(environment: Path) -> float:
    complete = environment / COMPLETE
    return complete.stat().st_mtime if complete.exists() else 0.0


def _text(file: Path) -> str:
    return file.read_text("utf-8", "replace")


_: type[Environments] = KeyedEnvironments
_own: type[Environments] = OwnEnvironments
