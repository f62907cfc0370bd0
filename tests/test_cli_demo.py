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
from pathlib import Path

import httpx
import pytest

from tests.installed import processes_of
from tests.waiting import PATIENCE, until

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
    assert httpx.get(url, timeout=PATIENCE, trust_env=False).text.startswith("It is ")
    demo.process.send_signal(signal.SIGINT)
    assert demo.ended() == 0
    assert demo.left() == []


def test_one_ctrl_c_after_the_other_ends_it_in_order_too(demo: Demo) -> None:
    demo.wait_for("Ctrl-C ends the server")

    def ends() -> bool:
        demo.process.send_signal(signal.SIGINT)
        return demo.process.poll() is not None

    until(ends, "end of the demo")
    assert demo.ended() == 0
    assert demo.output.endswith("That was it; nothing is left.\n")
    assert demo.left() == []


def test_nothing_is_left_if_it_is_ended_before_it_is_over(demo: Demo) -> None:
    demo.wait_for("twistd -n hookdeploy")
    demo.process.send_signal(signal.SIGTERM)
    assert demo.ended() == 1
    assert "The demo failed: it was ended before it was over" in demo.output
    assert demo.left() == []


def test_it_notices_that_the_server_dies_and_ends_what_that_leaves(demo: Demo) -> None:
    demo.wait_for("Ctrl-C ends the server")
    [server] = [pid for pid, words in processes_of(demo.place).items() if "twistd" in words]
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
