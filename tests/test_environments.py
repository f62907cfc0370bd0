"""Environments are made once for what defines them, and made again only when that changes.

uv's part is tested with a stand-in that records what it is asked for, and with uv itself where it is installed.
"""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from twisted_hook.environments import KeyedEnvironments, OwnEnvironments, existing, recipe_for
from twisted_hook.model import Command, CommandResult, Commit, Environment, StepFailed, Tree
from twisted_hook.process import SpawningRunner

SYSTEM = "/usr/local/bin:/usr/bin:/bin"
PYTHON = """#!/bin/sh
# Stands for Python: makes virtual environments of which it is the interpreter, and "installs" into them.
case "$2" in
    venv) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    pip) test ! -e fail || { echo "ERROR: No matching distribution found for fail"; exit 1; } ;;
esac
"""
UV = """#!/bin/sh
# Stands for uv.
echo "$*" >> "$0.log"
case "$1" in
    sync) where="$UV_PROJECT_ENVIRONMENT" ;;
    venv) where="$4" ;;
    pip) exit 0 ;;
esac
mkdir -p "$where/bin"; touch "$where/bin/python"
"""


@dataclass
class Recorder:
    """Runs commands for real, and remembers their names; ``rm`` does not count."""

    names: list[str] = field(default_factory=list)

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        if command.name != "rm":
            self.names.append(command.name)
        return await SpawningRunner(reactor).run(command, output=output)


@dataclass
class World:
    """An app's trees, its environments, and what was run for them."""

    directory: Path
    interpreter: Path
    path: str = SYSTEM
    recorder: Recorder = field(default_factory=Recorder)

    @property
    def environments(self) -> KeyedEnvironments:
        return KeyedEnvironments(self.directory / "environments", self.interpreter, "3.11.7", self.path, 120.0)

    def tree(self, files: Mapping[str, str], *, release: str = "r1", revision: str = "a" * 40) -> Tree:
        """A release with these files."""
        path = self.directory / "releases" / release
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(content)
        path.mkdir(parents=True, exist_ok=True)
        return Tree(path, Commit(revision, "subject", "author"), release)

    async def prepare(self, tree: Tree) -> Environment:
        env = {"PATH": self.path, "HOME": str(self.directory), "LANG": "C.UTF-8"}
        return await self.environments.prepare(self.recorder, tree, env)

    def made(self) -> set[str]:
        return {path.name for path in (self.directory / "environments").iterdir()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One whose Python is a stand-in, so that an environment costs nothing."""
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return World(tmp_path, python)


@pytest.fixture
def real_world(tmp_path: Path) -> World:
    return World(tmp_path, Path(sys.executable))


# What there is to do.


@pytest.mark.parametrize(
    ("files", "name", "holds_the_project"),
    [
        ({"uv.lock": "", "requirements.txt": "", "pyproject.toml": ""}, "uv.lock", False),
        ({"uv.lock": 'source = { virtual = "." }\n'}, "uv.lock", False),
        ({"uv.lock": 'source = { editable = "." }\n'}, "uv.lock", True),
        ({"uv.lock": 'source = { editable = "packages/one" }\n'}, "uv.lock", True),
        ({"uv.lock": 'source = { directory = "vendor/one" }\n'}, "uv.lock", True),
        ({"uv.lock": 'source = { registry = "https://example.com/simple" }\n'}, "uv.lock", False),
        ({"requirements.txt": "flask\n", "pyproject.toml": ""}, "requirements.txt", False),
        ({"pyproject.toml": ""}, "pyproject.toml", True),
    ],
)
def test_what_a_tree_asks_for_is_found(
    world: World, files: Mapping[str, str], name: str, holds_the_project: bool
) -> None:
    recipe = recipe_for(world.tree(files).path)
    assert recipe is not None
    assert (recipe.name, recipe.holds_the_project) == (name, holds_the_project)


def test_a_tree_with_nothing_to_install_asks_for_nothing(world: World) -> None:
    assert recipe_for(world.tree({"wsgi.py": "", "requirements.txt/not-a-file": ""}).path) is None


@pytest.mark.parametrize(
    "line",
    [
        *("-e .", "--editable=.", ".", "./vendor/pkg", "../pkg", "/srv/pkg", "vendor/pkg", "vendor/pkg[extra]"),
        *("pkg-1.0-py3-none-any.whl", "wheels/pkg-1.0-py3-none-any.whl", "pkg-1.0.tar.gz", "file:///srv/pkg"),
        *("pkg @ file:///srv/pkg", "pkg@file:vendor/pkg", "  ./indented", "flask\n./second"),
    ],
)
def test_a_requirement_in_the_tree_is_seen(world: World, line: str) -> None:
    recipe = recipe_for(world.tree({"requirements.txt": line + "\n"}).path)
    assert recipe is not None
    assert recipe.holds_the_project


@pytest.mark.parametrize(
    "line",
    [
        *("flask", "flask==3.0", "flask[async]>=3 ; python_version > '3.8'", "# ./a comment", "flask # see docs/x"),
        *("pkg @ https://example.com/pkg.zip", "https://example.com/a/pkg.whl", "git+https://example.com/pkg.git"),
        *("--index-url https://example.com/simple", "-r more/base.txt", "--find-links ./wheels", "-c c/c.txt"),
        *("flask --hash=sha256:a/b", "zope.interface", ""),
    ],
)
def test_a_requirement_from_elsewhere_is_none_in_the_tree(world: World, line: str) -> None:
    recipe = recipe_for(world.tree({"requirements.txt": line + "\n"}).path)
    assert recipe is not None
    assert not recipe.holds_the_project


def test_included_files_are_found_wherever_they_are(world: World) -> None:
    outside = world.directory / "outside.txt"
    outside.write_text("django\n")
    tree = world.tree(
        {
            "requirements.txt": f"-r more/base.txt\n-c constraints.txt\n-r {outside}\n-r none\n-r ../../shared.txt\n",
            "more/base.txt": "--requirement=deep.txt\n-r../requirements.txt # and round again\n",
            "more/deep.txt": "--constraint deeper.txt",
            "more/deeper.txt": "-r ../more/../more/deep.txt\n",
            "constraints.txt": "flask<4\n",
        }
    )
    (world.directory / "shared.txt").write_text("gunicorn\n")
    recipe = recipe_for(tree.path)
    assert recipe is not None
    assert sorted(file.resolve().name for file in recipe.files) == sorted(
        ["requirements.txt", "base.txt", "deep.txt", "deeper.txt", "constraints.txt", "outside.txt", "shared.txt"]
    )


def test_a_file_that_is_no_text_disturbs_nobody(world: World) -> None:
    tree = world.tree({"requirements.txt": "-r binary\n"})
    (tree.path / "binary").write_bytes(b"\xff\xfe\0")
    assert recipe_for(tree.path) is not None


# When something is installed, and when not.


@pytest_twisted.ensureDeferred
async def test_a_push_that_changes_no_dependency_installs_nothing(world: World) -> None:
    first = await world.prepare(world.tree({"requirements.txt": "flask\n", "app.py": "one"}))
    assert world.recorder.names == ["python -m venv", "pip install"]
    second = await world.prepare(world.tree({"requirements.txt": "flask\n", "app.py": "two"}, release="r2"))
    assert world.recorder.names == ["python -m venv", "pip install"]
    assert first == second
    assert first.interpreter == world.directory / "environments" / next(iter(world.made())) / "bin" / "python"


@pytest.mark.parametrize(
    ("changed", "content"),
    [
        ("requirements.txt", "-r base.txt\n-c constraints.txt\n--find-links wheels\ndjango\n"),
        ("base.txt", "flask<4\n"),
        ("constraints.txt", "werkzeug<3\n"),
        ("wheels/pkg-1.0-py3-none-any.whl", "another build"),
        ("wheels/pkg-2.0-py3-none-any.whl", "another version"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_push_that_changes_a_dependency_installs_it(world: World, changed: str, content: str) -> None:
    files = {
        "requirements.txt": "-r base.txt\n-c constraints.txt\n--find-links wheels\n",
        "base.txt": "flask\n",
        "constraints.txt": "werkzeug<4\n",
        "wheels/pkg-1.0-py3-none-any.whl": "a build",
    }
    first = await world.prepare(world.tree(files))
    second = await world.prepare(world.tree({**files, changed: content}, release="r2"))
    third = await world.prepare(world.tree(files, release="r3"))
    assert first == third
    assert first.directory != second.directory
    assert world.recorder.names == ["python -m venv", "pip install"] * 2


@pytest_twisted.ensureDeferred
async def test_another_interpreter_installs_anew(world: World) -> None:
    tree = world.tree({"requirements.txt": "flask\n"})
    env = {"PATH": SYSTEM}
    other = world.directory / "other-python"
    shutil.copy(world.interpreter, other)
    for environments in (
        world.environments,
        replace(world.environments, version="3.12.0"),
        replace(world.environments, interpreter=other),
    ):
        await environments.prepare(world.recorder, tree, env)
    assert len(world.made()) == 3


@pytest.mark.parametrize("files", [{"pyproject.toml": "[project]"}, {"requirements.txt": "./vendor/pkg\n"}])
@pytest_twisted.ensureDeferred
async def test_what_is_installed_from_the_tree_is_installed_for_every_release(
    world: World, files: Mapping[str, str]
) -> None:
    """An editable install points into the tree of one release: another one of the same commit needs its own."""
    first = await world.prepare(world.tree(files))
    again = await world.prepare(world.tree(files))
    other = await world.prepare(world.tree(files, release="r2"))
    assert first == again
    assert first.directory != other.directory
    assert len(world.recorder.names) == 4


@pytest_twisted.ensureDeferred
async def test_half_of_an_environment_is_made_again(world: World) -> None:
    """hookdeploy was killed while it was being made."""
    tree = world.tree({"requirements.txt": "flask\n"})
    made = await world.prepare(tree)
    assert made.directory is not None
    (made.directory / ".complete").unlink()
    (made.directory / "junk").touch()
    assert await world.prepare(tree) == made
    assert not (made.directory / "junk").exists()
    assert world.recorder.names == ["python -m venv", "pip install"] * 2


@pytest_twisted.ensureDeferred
async def test_a_failed_install_fails_with_the_words_of_pip_and_is_tried_again(world: World) -> None:
    tree = world.tree({"requirements.txt": "fail\n", "fail": ""})
    with pytest.raises(StepFailed, match="pip install failed: exit 1") as caught:
        await world.prepare(tree)
    assert caught.value.tail == "ERROR: No matching distribution found for fail"
    (tree.path / "fail").unlink()
    await world.prepare(tree)
    assert world.recorder.names == ["python -m venv", "pip install"] * 2


@pytest_twisted.ensureDeferred
async def test_an_interpreter_that_is_gone_is_told(world: World) -> None:
    world.interpreter.unlink()
    with pytest.raises(StepFailed, match="python -m venv failed: could not start: no such program"):
        await world.prepare(world.tree({"requirements.txt": "flask\n"}))


@pytest_twisted.ensureDeferred
async def test_environments_that_nobody_uses_are_removed(world: World) -> None:
    """The disk does not fill up with one for every push of a project that is installed itself."""
    made = []
    for number in range(8):
        tree = world.tree({"pyproject.toml": "[project]"}, release=f"r{number}")
        environment = await world.prepare(tree)
        made.append(environment.directory)
        shutil.rmtree(tree.path)
        await world.environments.keep(world.recorder, environment)
        await world.prepare(world.tree({"pyproject.toml": "[project]"}, release="r0"))
    await world.environments.keep(world.recorder, environment)
    assert {directory.name for directory in (made[0], *made[-4:]) if directory} == world.made()
    assert len(world.recorder.names) == 16


@pytest_twisted.ensureDeferred
async def test_an_environment_is_kept_as_long_as_a_release_that_asks_for_it(world: World) -> None:
    """That of the running server, while one attempt after the other to replace it fails."""
    running = await world.prepare(world.tree({"requirements.txt": "flask\n"}, release="running"))
    for number in range(8):
        attempt = world.tree({"requirements.txt": f"flask\nfail=={number}\n"}, release=f"r{number}")
        await world.prepare(attempt)
        shutil.rmtree(attempt.path)
    assert running.interpreter.exists()
    last = await world.prepare(world.tree({"requirements.txt": "flask\nlast\n"}))
    await world.environments.keep(world.recorder, last)
    assert running.interpreter.exists()
    assert len(world.made()) == 6
    shutil.rmtree(world.directory / "releases" / "running")
    await world.environments.keep(world.recorder, last)
    assert len(world.made()) == 5


@pytest_twisted.ensureDeferred
async def test_the_commands_see_the_environment_of_the_steps_and_no_more(world: World) -> None:
    seen: list[Command] = []

    class Watching(Recorder):
        async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
            seen.append(command)
            return await super().run(command, output=output)

    tree, env = world.tree({"requirements.txt": "flask\n"}), {"PATH": SYSTEM, "PIP_INDEX_URL": "https://mine.example"}
    await world.environments.prepare(Watching(), tree, env)
    for command in seen:
        assert {**command.env, "UV_PROJECT_ENVIRONMENT": ""} == {**env, "UV_PROJECT_ENVIRONMENT": ""}
        assert (command.cwd, command.timeout) == (tree.path, 120.0)


# Where nothing is installed by us.


@pytest_twisted.ensureDeferred
async def test_without_anything_to_install_ours_is_the_interpreter(world: World) -> None:
    assert await world.prepare(world.tree({"wsgi.py": ""})) == Environment(world.interpreter)
    assert world.recorder.names == []


@pytest.mark.parametrize("name", [".venv", "venv"])
@pytest_twisted.ensureDeferred
async def test_an_environment_in_the_tree_is_used(world: World, name: str) -> None:
    tree = world.tree({f"{name}/bin/python": "", "wsgi.py": ""})
    expected = Environment(tree.path / name / "bin" / "python", tree.path / name)
    assert await world.prepare(tree) == expected
    assert await OwnEnvironments(world.interpreter).prepare(world.recorder, tree, {}) == expected
    assert world.recorder.names == []


@pytest_twisted.ensureDeferred
async def test_an_app_that_builds_for_itself_gets_nothing_installed(world: World) -> None:
    tree = world.tree({"requirements.txt": "flask\n"})
    assert await OwnEnvironments(world.interpreter).prepare(world.recorder, tree, {}) == Environment(world.interpreter)
    assert world.recorder.names == []


def test_the_gunicorn_of_an_environment_is_found(world: World) -> None:
    packages = world.directory / "env" / "lib" / "python3.11" / "site-packages"
    (packages / "gunicorn_color-1.0.dist-info").mkdir(parents=True)
    assert existing(world.directory / "env").gunicorn is None
    (packages / "gunicorn-27.0.1.dist-info").mkdir()
    assert existing(world.directory / "env").gunicorn == "27.0.1"


# uv.


def install_uv(world: World) -> Path:
    """Put the stand-in on the world's path; its log says what it was asked for."""
    uv = world.directory / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(UV)
    uv.chmod(0o755)
    world.path = f"{uv.parent}:{SYSTEM}"
    return uv.with_name("uv.log")


@pytest_twisted.ensureDeferred
async def test_a_lock_of_uv_is_synced_into_the_keyed_environment(world: World) -> None:
    log = install_uv(world)
    made = await world.prepare(world.tree({"uv.lock": "", "pyproject.toml": ""}))
    assert log.read_text() == "sync --frozen --no-dev\n"
    assert made.interpreter.exists()
    assert made.directory is not None
    assert made.directory.parent == world.directory / "environments"


@pytest_twisted.ensureDeferred
async def test_a_lock_of_uv_without_uv_is_told(world: World) -> None:
    with pytest.raises(StepFailed, match=r"has a uv\.lock, but uv is not installed"):
        await world.prepare(world.tree({"uv.lock": ""}))


@pytest.mark.parametrize(
    ("files", "what"), [({"requirements.txt": ""}, "-r requirements.txt"), ({"pyproject.toml": ""}, ".")]
)
@pytest_twisted.ensureDeferred
async def test_uv_installs_where_it_is_installed(world: World, files: Mapping[str, str], what: str) -> None:
    log = install_uv(world)
    made = await world.prepare(world.tree(files))
    assert log.read_text().splitlines() == [
        f"venv --python {world.interpreter} {made.directory}",
        f"pip install --python {made.interpreter} {what}",
    ]


# For real.


def wheel(directory: Path, name: str, version: str, says: str) -> None:
    """A wheel with one module, made by hand."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    contents = {
        f"{name}.py": f"SAYS = {says!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*contents, f"{info}/RECORD"))
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, content in contents.items():
            archive.writestr(zipfile.ZipInfo(file), content)  # dated 1980, so that it is the same every time


def wheelhouse(world: World, release: str = "r1") -> Tree:
    tree = world.tree({"requirements.txt": "--no-index\n--find-links ./wheels\ngreeting\n"}, release=release)
    wheel(tree.path / "wheels", "greeting", "1.0", "hello")
    return tree


def said(environment: Environment) -> str:
    """What the module in the wheel says, asked under the environment's own interpreter."""
    script = "import greeting; print(greeting.SAYS)"
    return subprocess.run(
        [environment.interpreter, "-I", "-c", script], capture_output=True, check=True
    ).stdout.decode()


@pytest_twisted.ensureDeferred
async def test_a_real_environment_is_made_with_pip(real_world: World) -> None:
    made = await real_world.prepare(wheelhouse(real_world))
    assert said(made) == "hello\n"
    assert real_world.recorder.names == ["python -m venv", "pip install"]
    started = time.monotonic()
    assert await real_world.prepare(wheelhouse(real_world, release="r2")) == made
    assert time.monotonic() - started < 1
    assert real_world.recorder.names == ["python -m venv", "pip install"]


@pytest_twisted.ensureDeferred
async def test_what_pip_cannot_find_is_told_in_its_words(real_world: World) -> None:
    tree = real_world.tree({"requirements.txt": "--no-index\nno-such-package\n"})
    with pytest.raises(StepFailed, match="pip install failed: exit 1") as caught:
        await real_world.prepare(tree)
    assert "No matching distribution found for no-such-package" in caught.value.tail


@pytest_twisted.ensureDeferred
async def test_a_real_environment_is_made_with_uv(real_world: World) -> None:
    with_uv(real_world)
    made = await real_world.prepare(wheelhouse(real_world))
    assert said(made) == "hello\n"
    assert real_world.recorder.names == ["uv venv", "uv pip install"]


@pytest_twisted.ensureDeferred
async def test_a_real_lock_is_synced_with_uv(real_world: World) -> None:
    with_uv(real_world)
    project = '[project]\nname = "app"\nversion = "1"\nrequires-python = ">=3.11"\n'
    package = '[[package]]\nname = "app"\nversion = "1"\nsource = { virtual = "." }\n'
    lock = f'version = 1\nrequires-python = ">=3.11"\n\n{package}'
    made = await real_world.prepare(real_world.tree({"pyproject.toml": project, "uv.lock": lock}))
    assert made.interpreter.exists()
    assert real_world.recorder.names == ["uv sync"]
    assert not (real_world.directory / "releases" / "r1" / ".venv").exists()


def with_uv(world: World) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None and not os.environ.get("HOOKDEPLOY_ALL_TESTS"):
        pytest.skip("uv is not installed")
    assert uv is not None, "uv is not installed"
    world.path = f"{Path(uv).parent}:{os.environ['PATH']}"
