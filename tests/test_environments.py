"""Environments are made once for what defines them, and made again only when that changes.

uv's part is tested with a stand-in that records what it is asked for, and with uv itself where it is installed.
"""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.accounts import NEEDS_ROOT, NOBODY, open_directory
from twisted_hook.environments import COMPLETE, KeyedEnvironments, OwnEnvironments, existing, recipe_for
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
    """Runs commands for real, and remembers them; ``rm`` does not count."""

    commands: list[Command] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [command.name for command in self.commands]

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        if command.name != "rm":
            self.commands.append(command)
        return await SpawningRunner(reactor).run(command, output=output)


@dataclass
class World:
    """An app's trees, its environments, and what was run for them."""

    directory: Path
    interpreter: Path
    path: str = SYSTEM
    recorder: Recorder = field(default_factory=Recorder)
    user: str | None = None
    nice: int = 0
    home: Path | None = None
    timeout: float = 1000.0

    @property
    def environments(self) -> KeyedEnvironments:
        return KeyedEnvironments(
            self.directory / "environments",
            self.interpreter,
            "3.11.7",
            self.path,
            self.timeout,
            user=self.user,
            nice=self.nice,
        )

    def tree(self, files: Mapping[str, str], *, release: str = "r1", revision: str = "a" * 40) -> Tree:
        """A release with these files."""
        path = self.directory / "releases" / release
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(content)
        path.mkdir(parents=True, exist_ok=True)
        return Tree(path, Commit(revision, "subject", "author"), release)

    async def prepare(self, tree: Tree) -> Environment:
        env = {"PATH": self.path, "HOME": str(self.home or self.directory), "LANG": "C.UTF-8"}
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
        assert environment.directory is not None
        os.utime(environment.directory / COMPLETE, (number, number))  # two may be made within one tick of the clock
        made.append(environment.directory)
        shutil.rmtree(tree.path)
        await world.environments.keep(world.recorder, environment)
        await world.prepare(world.tree({"pyproject.toml": "[project]"}, release="r0"))
    await world.environments.keep(world.recorder, environment)
    assert {directory.name for directory in (made[0], *made[-4:])} == world.made()
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
        assert (command.cwd, command.timeout) == (tree.path, world.timeout)


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
    assert await real_world.prepare(wheelhouse(real_world, release="r2")) == made
    assert real_world.recorder.names == ["python -m venv", "pip install"]
    # What pip cannot find is told in its words. Another environment is a copy of the first, which costs less.
    real_world.interpreter = real_world.directory / "copying"
    real_world.interpreter.write_text(f'#!/bin/sh\nmkdir -p "$3"\ncp -R "{made.directory}/." "$3"\n')
    real_world.interpreter.chmod(0o755)
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


# As another account.

as_another_account = pytest.mark.skipif(bool(NEEDS_ROOT), reason=NEEDS_ROOT)


@pytest.fixture
def foreign_world() -> Iterator[World]:
    """One that another account may enter, with a stand-in for Python that it may run."""
    with open_directory() as directory:
        python = directory / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        yield World(directory, python, user="nobody")


def owners(directory: Path) -> set[int]:
    return {path.lstat().st_uid for path in (directory, *directory.rglob("*")) if path.name != COMPLETE}


@as_another_account
@pytest_twisted.ensureDeferred
async def test_the_account_of_an_app_makes_its_environments_and_only_those(foreign_world: World) -> None:
    made = await foreign_world.prepare(foreign_world.tree({"requirements.txt": "flask\n"}))
    assert made.directory is not None
    assert owners(made.directory) == {NOBODY.pw_uid}
    assert made.directory.parent.stat().st_uid == os.geteuid()
    assert stat.S_IMODE(made.directory.parent.stat().st_mode) == 0o711
    again = await foreign_world.prepare(foreign_world.tree({"requirements.txt": "flask\n"}, release="r2"))
    assert again == made
    assert foreign_world.recorder.names == ["python -m venv", "pip install"]


@as_another_account
@pytest_twisted.ensureDeferred
async def test_what_one_account_may_change_is_not_run_by_another(foreign_world: World) -> None:
    tree = foreign_world.tree({"requirements.txt": "flask\n"})
    first = await foreign_world.prepare(tree)
    foreign_world.user = None
    second = await foreign_world.prepare(tree)
    assert first.directory != second.directory
    assert second.directory is not None
    assert owners(second.directory) == {os.geteuid()}


@as_another_account
@pytest_twisted.ensureDeferred
async def test_half_of_an_environment_of_another_account_is_made_again(foreign_world: World) -> None:
    tree = foreign_world.tree({"requirements.txt": "flask\n"})
    made = await foreign_world.prepare(tree)
    assert made.directory is not None
    (made.directory / COMPLETE).unlink()
    assert await foreign_world.prepare(tree) == made
    assert foreign_world.recorder.names == ["python -m venv", "pip install"] * 2


@pytest.mark.parametrize("trap", ["to a file", "to nothing", "pipe"])
@pytest_twisted.ensureDeferred
async def test_a_trap_in_the_place_of_the_mark_is_not_stepped_into(world: World, trap: str) -> None:
    """The account that owns an environment can put anything into it, and we are root."""
    tree = world.tree({"requirements.txt": "flask\n"})
    made = await world.prepare(tree)
    assert made.directory is not None
    target = world.directory / "target"
    if trap == "to a file":
        target.write_text("of somebody else")
        os.utime(target, (1, 1))
    (made.directory / COMPLETE).unlink()
    if trap == "pipe":
        os.mkfifo(made.directory / COMPLETE)
    else:
        (made.directory / COMPLETE).symlink_to(target)
    if trap == "to nothing":  # it is not complete, and is made again from nothing
        await world.prepare(tree)
        assert not (made.directory / COMPLETE).is_symlink()
        assert not target.exists()
        return
    with pytest.raises(StepFailed, match=r"/\.complete cannot be written: "):
        await world.prepare(tree)
    assert not target.exists() or target.stat().st_mtime == 1


@pytest_twisted.ensureDeferred
async def test_a_link_that_a_build_leaves_for_the_mark_is_not_followed(world: World) -> None:
    target = world.directory / "target"
    plant = f'pip) ln -s {target} "$(dirname "$0")/../{COMPLETE}" ;;\n    pip)'
    world.interpreter.write_text(PYTHON.replace("pip)", plant, 1))
    with pytest.raises(StepFailed, match=r"/\.complete cannot be written: Too many levels of symbolic links"):
        await world.prepare(world.tree({"requirements.txt": "flask\n"}))
    assert not target.exists()


@pytest_twisted.ensureDeferred
async def test_an_account_that_is_not_there_fails_the_deployment_in_words(world: World) -> None:
    world.user = "no-such-account"
    with pytest.raises(StepFailed, match="there is no account 'no-such-account'"):
        await world.prepare(world.tree({"requirements.txt": "flask\n"}))


@pytest_twisted.ensureDeferred
async def test_installing_steps_back_for_the_app_that_runs(world: World) -> None:
    world.nice = 10
    await world.prepare(world.tree({"requirements.txt": "flask\n"}))
    assert [(command.name, command.nice) for command in world.recorder.commands] == [
        ("python -m venv", 10),
        ("pip install", 10),
    ]


@as_another_account
@pytest.mark.parametrize("home", ["/nonexistent", "/", "its own"])
@pytest_twisted.ensureDeferred
async def test_uv_makes_a_real_environment_for_an_account_with_a_home_or_without(
    foreign_world: World, home: str
) -> None:
    """Accounts of services have a home that is not there, or that is not theirs."""
    with_uv(foreign_world)
    # What is ours may be where no other account may go.
    shutil.copy(shutil.which("uv", path=foreign_world.path) or "", foreign_world.directory)
    foreign_world.path = f"{foreign_world.directory}:{SYSTEM}"
    foreign_world.interpreter = Path("/usr/bin/python3")
    foreign_world.home = Path(home)
    if home == "its own":
        foreign_world.home = foreign_world.directory / "home"
        foreign_world.home.mkdir()
        os.chown(foreign_world.home, NOBODY.pw_uid, NOBODY.pw_gid)
    made = await foreign_world.prepare(wheelhouse(foreign_world))
    assert made.directory is not None
    assert owners(made.directory) == {NOBODY.pw_uid}
    assert said(made) == "hello\n"
    assert (foreign_world.home / ".cache" / "uv").exists() == (home == "its own")


def with_uv(world: World) -> None:
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None and not os.environ.get("HOOKDEPLOY_ALL_TESTS"):
        pytest.skip("uv is not installed")
    assert uv is not None, "uv is not installed"
    world.path = f"{Path(uv).parent}:{os.environ['PATH']}"
