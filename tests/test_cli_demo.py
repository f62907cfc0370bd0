"""``hookdeploy demo``, as somebody runs it who has never seen hookdeploy: from anywhere; and nothing is left of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from rich.console import Console

from tests.installed import processes_of
from tests.proctable import children
from tests.waiting import PATIENCE, until
from twisted_hook.cli import demo as command
from twisted_hook.cli import stage
from twisted_hook.cli.client import Api

HOOKDEPLOY = (sys.executable, "-c", "from twisted_hook.cli import main; main()")


class Demo:
    """A demo as a process of its own, whose directory is made in ours."""

    def __init__(self, directory: Path, *arguments: str, **environ: str) -> None:
        self._output = directory / "output"
        self.place = directory / "place"
        self.place.mkdir()
        elsewhere = directory / "elsewhere"
        elsewhere.mkdir()
        fresh = {"HOME": str(elsewhere), "PATH": os.environ["PATH"], "TMPDIR": str(self.place), **environ}
        self.environ = {**fresh, **{name: value for name, value in os.environ.items() if name.startswith("COV")}}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                (*HOOKDEPLOY, "demo", *arguments),
                cwd=elsewhere,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.output or self.process.poll() is not None, f"{text!r} in the output")
        assert text in self.output

    def ended(self) -> int:
        return self.process.wait(PATIENCE)

    def left(self) -> list[object]:
        """What is left of it: processes and files."""
        return [*processes_of(self.place).items(), *self.place.iterdir()]

    def put_away(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE)
        print(self.output)


@pytest.fixture
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Demo]:
    arguments: tuple[str, ...] = getattr(request, "param", ())
    made = Demo(tmp_path, *arguments)
    yield made
    made.put_away()


@pytest.mark.parametrize("demo", [("--once",)], indirect=True)
def test_it_shows_the_page_before_and_after_a_push_and_where_the_time_went(demo: Demo) -> None:
    """On a new machine: nobody has told git a name, and there is no home worth the word."""
    assert demo.ended() == 0
    said = demo.output
    before, after = re.findall(r"\| (.+ \(commit [0-9a-f]{7}\))\n", said)
    assert before.startswith("Hello, world!")
    assert after.startswith("Hello from a new release!")
    assert "twistd -n hookdeploy --config " in said
    assert "was answered with 202 accepted" in said
    times = dict(re.findall(r"^     (\S.*?) +([0-9.]+) s", said, re.MULTILINE))
    assert set(times) >= {"queued", "fetching", "building", "starting", "checking", "swapping", "in all"}
    assert demo.left() == []


@pytest.mark.parametrize("demo", [("--once", "--json")], indirect=True)
def test_json_tells_the_same(demo: Demo) -> None:
    assert demo.ended() == 0
    told = json.loads(demo.output)
    assert (told["ok"], told["answer"]) == (True, "202 accepted")
    assert told["page"] == f"Hello from a new release! (commit {told['commit'][:7]})"
    assert sum(told["phases"].values()) > 0
    assert told["visits"] > 0
    assert demo.left() == []


def test_it_stays_until_somebody_ends_it_and_the_command_that_it_shows_changes_the_page(demo: Demo) -> None:
    demo.wait_for("Ctrl-C ends the server")
    [command] = re.findall(r"^cd .*$", demo.output, re.MULTILINE)
    [url] = re.findall(r"The page is (http://\S+)", demo.output)
    done = subprocess.run(("sh", "-ec", command), env=demo.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("202 accepted as delivery ")
    demo.wait_for("deployed")
    demo.wait_for("What time it is")
    until(  # the server that was asked to go may answer once more
        lambda: httpx.get(url, timeout=PATIENCE, trust_env=False).text.startswith("It is "), "the new page"
    )
    demo.process.send_signal(signal.SIGINT)
    assert demo.ended() == 0
    assert demo.left() == []


FETCHES_FOR_EVER = f"""#!/bin/sh
case " $* " in *" fetch "*) exec sleep 1000;; esac
exec {shutil.which("git")} "$@"
"""


def test_nothing_is_left_if_it_is_ended_before_it_is_over_by_one_ctrl_c_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(FETCHES_FOR_EVER)
    (tmp_path / "bin" / "git").chmod(0o755)
    demo = Demo(tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    demo.wait_for("twistd -n hookdeploy")
    until(lambda: any("sleep 1000" in line for line in processes_of(demo.place).values()), "fetch of the server")
    demo.process.send_signal(signal.SIGTERM)

    def ends() -> bool:
        demo.process.send_signal(signal.SIGINT)
        return demo.process.poll() is not None

    until(ends, "end of the demo")
    assert demo.ended() == 1
    assert "The demo failed: it was ended before it was over" in demo.output
    assert demo.left() == []


class Typing(StringIO):
    """Somebody at the terminal, whose push is deployed as soon as it says how to push, and who ends it then."""

    def __init__(self, wish: command.Wish) -> None:
        super().__init__()
        self.wish = wish
        self.looks = 0
        self.newest: dict[str, Any] = {"id": "1", "outcome": "deployed"}

    def write(self, text: str) -> int:
        if "Ctrl-C ends the server" in text:
            pushed = {"revision": None, "subject": "What time it is", "reason": "", "finished_at": "2026-03-01T12:00Z"}
            self.newest = {"id": "2", "outcome": "deployed", **pushed}
        return super().write(text)

    def get(self, *_: object, **__: object) -> list[dict[str, Any]]:
        """As the API answers."""
        self.looks += 1
        self.wish.to_end = self.looks > 2
        return [self.newest]


def test_who_pushes_at_once_is_told_of_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = command.Wish()
    terminal, workplace = Typing(wish), stage.Workplace(tmp_path)
    monkeypatch.setattr(command, "IDLE_PAUSE", 0.0)
    shown = command.Demo(workplace, stage.Server(tmp_path), stage.Visitors(workplace.page), wish)
    shown._api = cast("Api", terminal)
    command._stay(Console(file=terminal, width=500), shown, workplace)
    assert "What time it is" in terminal.getvalue().partition("Ctrl-C ends the server")[2]


def test_its_ports_are_none_that_the_kernel_gives_to_clients(tmp_path: Path) -> None:
    first, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    workplace = stage.Workplace(tmp_path)
    ports = [httpx.URL(url).port or 0 for url in (workplace.page, workplace.hook)]
    assert len(set(ports)) == 2
    assert max(ports) < int(first)


def test_it_notices_that_the_server_dies_and_ends_what_that_leaves(demo: Demo) -> None:
    demo.wait_for("Ctrl-C ends the server")
    [server] = children(demo.process.pid)
    os.kill(server, signal.SIGKILL)
    assert demo.ended() == 1
    assert "The demo failed: the server ended by itself: exit -9" in demo.output
    assert "The server's last words:" in demo.output
    assert demo.left() == []


def test_a_deployment_that_fails_is_explained_with_the_servers_last_words(tmp_path: Path) -> None:
    """There is git, but not what the server starts programs with."""
    few = tmp_path / "bin"
    few.mkdir()
    (few / "git").symlink_to(shutil.which("git") or "")
    demo = Demo(tmp_path, "--once", PATH=str(few))
    assert demo.ended() == 1
    assert "The demo failed: the deployment failed: " in demo.output
    assert "no such program: setsid" in demo.output
    assert "The server's last words:\n" in demo.output
    assert demo.left() == []


def test_without_git_it_says_so(tmp_path: Path) -> None:
    demo = Demo(tmp_path, "--once", "--json", PATH=str(tmp_path))
    assert demo.ended() == 1
    told = json.loads(demo.output)
    assert told["ok"] is False
    assert told["error"].startswith("git is not installed")
    assert demo.left() == []
