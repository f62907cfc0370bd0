"""Virtual environments, keyed by the content of what defines them: a push that changes no dependency installs nothing.

Touches one app's ``environments`` directory. Where a build is not ``auto`` it only looks for the environment that the
app's own steps have made.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from twisted_hook.boundaries import CommandRunner, Environments
from twisted_hook.model import Command, Environment, StepFailed, Tree
from twisted_hook.repository import failed

_INCLUDED = re.compile(r"^\s*(?:-r|--requirement|-c|--constraint)[\s=]*(\S+)", re.MULTILINE)
_LOCAL = re.compile(r"^\s*(?:-e|--editable|file:|\.|/)|@\s*file:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an environment is made, and what it depends on."""

    name: str
    files: tuple[Path, ...]
    holds_the_project: bool
    """The project itself is installed too, so that every commit needs an environment of its own."""


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

    async def prepare(self, run: CommandRunner, tree: Tree, env: Mapping[str, str]) -> Environment:
        recipe = recipe_for(tree.path)
        if recipe is None:
            return found_in(tree.path, self.interpreter)
        directory = self.directory / self._key(recipe, tree)
        complete = directory / ".complete"
        if not complete.exists():
            shutil.rmtree(directory, ignore_errors=True)  # half of one, from a run that was cut off
            for name, argv in self._commands(recipe, directory):
                result = await run.run(
                    Command(
                        name,
                        argv,
                        {**env, "UV_PROJECT_ENVIRONMENT": str(directory)},
                        cwd=tree.path,
                        timeout=self.timeout,
                    )
                )
                if not result.ok:
                    raise failed(f"{name} failed", result)
            complete.touch()
        return existing(directory)

    def _key(self, recipe: Recipe, tree: Tree) -> str:
        digest = hashlib.sha256(f"{recipe.name}\0{self.interpreter}\0{self.version}\0".encode())
        for file in recipe.files:
            digest.update(f"{file.relative_to(tree.path)}\0".encode() + file.read_bytes() + b"\0")
        if recipe.holds_the_project:
            digest.update(tree.commit.revision.encode())
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


def recipe_for(tree: Path) -> Recipe | None:
    """What ``build = "auto"`` does with a tree; None where there is nothing to install."""
    project = tree / "pyproject.toml"
    if (tree / "uv.lock").is_file():
        return Recipe("uv.lock", _there(tree / "uv.lock", project), _is_a_package(project))
    if (tree / "requirements.txt").is_file():
        files = tuple(_with_included(tree / "requirements.txt", seen=set()))
        return Recipe("requirements.txt", files, any(_LOCAL.search(_text(file)) for file in files))
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


def _is_a_package(project: Path) -> bool:
    """Whether uv installs the project itself (uv documentation, build systems): it then points into one tree."""
    if not project.is_file():
        return False
    try:
        settings = tomllib.loads(_text(project))
    except tomllib.TOMLDecodeError as error:
        raise StepFailed(f"pyproject.toml: {error}") from error
    return bool(settings.get("tool", {}).get("uv", {}).get("package", "build-system" in settings))


def _with_included(file: Path, *, seen: set[Path]) -> Iterator[Path]:
    """A requirements file and those that it includes, as far as they exist."""
    if file in seen or not file.is_file():
        return
    seen.add(file)
    yield file
    for name in _INCLUDED.findall(_text(file)):
        yield from _with_included(file.parent / name, seen=seen)


def _there(*files: Path) -> tuple[Path, ...]:
    return tuple(file for file in files if file.is_file())


def _text(file: Path) -> str:
    return file.read_text("utf-8", "replace")


_: type[Environments] = KeyedEnvironments
_own: type[Environments] = OwnEnvironments
