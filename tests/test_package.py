"""What is packed and what becomes of it: wheel, sdist and editable install make ``twistd hookdeploy`` known.

Nothing is downloaded: the environments are new, but see the dependencies of this one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from twisted_hook import __version__

ROOT = Path(__file__).parent.parent
PLUGIN = "twisted/plugins/hookdeploy_plugin.py"
TWISTD = "from twisted.scripts.twistd import run; run()"
OWN_NAMES = ("PATH", "HOME", "LANG", "TMPDIR")


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it must succeed. Nothing in its environment tells of this very source tree."""
    environ = {name: os.environ[name] for name in OWN_NAMES if name in os.environ}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the sdist, and the wheel that was built from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, ROOT, cwd=directory)
    return directory


@pytest.fixture(scope="module")
def wheel(packed: Path) -> Path:
    [found] = packed.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def sdist(packed: Path) -> Path:
    [found] = packed.glob("*.tar.gz")
    return found


class Environment:
    """A new virtual environment that sees the dependencies of this one, but of hookdeploy only what is installed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._python = directory / "env" / "bin" / "python"
        venv.create(directory / "env", with_pip=False, symlinks=True)
        [site] = (directory / "env").glob("lib/python*/site-packages")
        # A line of a .pth file adds a directory without the .pth files in it, so without an editable install.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install(self, *what: str | Path) -> None:
        pip = (sys.executable, "-m", "pip", "--python", self._python, "--disable-pip-version-check")
        run(*pip, "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", *what, cwd=self._directory)

    def python(self, *arguments: str) -> str:
        return run(self._python, *arguments, cwd=self._directory)

    def hookdeploy(self, *arguments: str) -> str:
        return run(self._python.with_name("hookdeploy"), *arguments, cwd=self._directory)

    def found(self) -> Path:
        """The directory of the package that is imported."""
        return Path(self.python("-c", "import twisted_hook; print(twisted_hook.__path__[0])").strip())

    def knows_the_plugin(self) -> bool:
        return "  hookdeploy " in self.python("-c", TWISTD, "--help")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path)


def test_the_wheel_holds_the_package_and_the_plugin_and_nothing_else(wheel: Path) -> None:
    """No ``twisted/__init__.py``, which would hide Twisted, and no ``dropin.cache``, which would name paths of ours."""
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "twisted_hook").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"hookdeploy-{__version__}.dist-info"
    about = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == {*modules, PLUGIN, *about}
    assert {"twisted_hook/journal/schema.sql", "twisted_hook/gate.py", "twisted_hook/py.typed"} <= modules


def test_the_sdist_holds_what_it_takes_to_build_and_to_test(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        PLUGIN,
        "twisted_hook/journal/schema.sql",
        "tests/conftest.py",
    } <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith("dropin.cache")]
    assert "twisted/__init__.py" not in names
    assert "twisted/plugins/__init__.py" not in names


def test_twistd_finds_nothing_where_nothing_is_installed(environment: Environment) -> None:
    """So that the tests below prove something."""
    assert not environment.knows_the_plugin()


def test_an_installed_wheel_works_from_a_push_to_a_new_page(environment: Environment, wheel: Path) -> None:
    """And so does an sdist, from which it was built."""
    environment.install(wheel)
    assert environment.found().is_relative_to(environment._directory)
    assert environment.knows_the_plugin()
    assert environment.hookdeploy("--version").strip().endswith(__version__)
    assert "Hello from a new release!" in environment.hookdeploy("demo", "--once")


def test_an_editable_install_is_found_by_twistd(environment: Environment, sdist: Path, tmp_path: Path) -> None:
    """The plugin system looks along ``sys.path`` and knows no import hooks."""
    shutil.unpack_archive(sdist, tmp_path / "source")
    [source] = (tmp_path / "source").iterdir()
    environment.install("--editable", source)
    assert environment.found() == source / "twisted_hook"
    assert environment.knows_the_plugin()
