"""A server is tried out on a private socket with real servers, and nothing of it is left."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred

from tests.patient import up_when
from tests.proctable import descriptors, within
from tests.waiting import PATIENCE, become
from tests.wsgiapps import PLAIN_ENVIRONMENT, REACTOR, soon, tree
from twisted_hook import candidate, commands, leftovers
from twisted_hook.appserver import GATE
from twisted_hook.candidate import Candidate, Trial
from twisted_hook.model import Environment, Launch, StepFailed

UVICORN = (sys.executable, "-m", "uvicorn", "--fd", "{fd}", "wsgi:application")

GOOD = """
import os
print("loaded", flush=True)

async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("shut down in good order", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
    else:
        print("asked", scope["path"], scope["client"], dict(scope["headers"]), flush=True)
        await answer(scope, send)

async def answer(scope, send):
    await send({"type": "http.response.start", "status": STATUS, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * 100})

STATUS = 200
"""
SICK = GOOD + "STATUS = 500\n"
MOVED = GOOD + "STATUS = 301\n"
LIFESPAN_FAILS = """
async def application(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
"""
LIFESPAN_HANGS = """
import asyncio
async def application(scope, receive, send):
    print("waiting for the database", flush=True)
    await asyncio.sleep(1000)
"""
IMPORT_ERROR = 'raise RuntimeError("no settings found")\n'
SILENT = GOOD + "import asyncio\nasync def answer(scope, send):\n    await asyncio.sleep(1000)\n"
ENDLESS = (
    GOOD
    + """
import asyncio
async def answer(scope, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await asyncio.sleep(0.001)  # uvicorn itself never waits once the client has gone
"""
)
BREAKS_OFF = (
    GOOD
    + """
async def answer(scope, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    raise RuntimeError("the connection to the database is lost")
"""
)
DIES_WHEN_ASKED = GOOD + "async def answer(scope, send):\n    print('out of memory', flush=True)\n    os._exit(9)\n"
DIES_LATER = "import os, threading\nthreading.Timer(1, os._exit, [3]).start()\n" + GOOD
DIES_AFTER_ITS_ANSWERS = (
    GOOD
    + """
import asyncio
async def answer(scope, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
    asyncio.get_running_loop().call_later(0.2, os._exit, 4)
"""
)
STUBBORN = "import signal\nsignal.signal = lambda *_: None\nsignal.pthread_sigmask(signal.SIG_BLOCK, [15])\n" + GOOD
LEAVES_A_CHILD = (
    """
import subprocess
subprocess.Popen(["sh", "-c", 'trap "" TERM; while :; do sleep 0.05; done'])
"""
    + GOOD
)

SPEAKS_NO_HTTP = """
import socket
listener = socket.socket(fileno=3)
listener.setblocking(True)
while True:
    accepted, _ = listener.accept()
    accepted.recv(1000)
    accepted.sendall(b"SSH-2.0-OpenSSH_9.2\\r\\n")
    accepted.close()
"""


class Stage:
    """Where candidates are tried out."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "server.log"
        self.records = directory / "commands"
        self.records.mkdir()
        self.candidates: list[Candidate] = []
        self.reactor = REACTOR

    def trial(
        self,
        source: str,
        *,
        argv: tuple[str, ...] = UVICORN,
        health: str | None = "/healthz",
        limit: float = PATIENCE,
        bind: str = "127.0.0.1:8080",
        env: Mapping[str, str] = PLAIN_ENVIRONMENT,
    ) -> Trial:
        at = tree(self.directory / "release", source)
        return Trial(
            argv=argv,
            env=env,
            cwd=at.path,
            bind=bind,
            log=self.log,
            records=self.records,
            health=health,
            limit=limit,
        )

    def candidate(self, trial: Trial) -> Candidate:
        self.candidates.append(Candidate(self.reactor, trial))
        return self.candidates[-1]

    async def passes(self, trial: Trial) -> float:
        made = self.candidate(trial)
        seconds = await made.try_out()
        await soon(made.swept.wait())
        return seconds

    async def fails(self, trial: Trial) -> StepFailed:
        made = self.candidate(trial)
        with pytest.raises(StepFailed) as failed:
            await made.try_out()
        await soon(made.swept.wait())
        assert failed.value.summary.startswith("the new server did not pass its trial: ")
        failed.value.summary = failed.value.summary.partition(": ")[2]
        return failed.value

    def said(self) -> str:
        return self.log.read_text()

    def processes(self) -> list[int]:
        """Every process that was started for a candidate and still runs."""
        return [*within(self.directory)]


def open_descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@asynccontextmanager
async def stage(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """A stage of which nothing is left: no process, no record, no socket, no descriptor."""
    temporary = TemporaryDirectory()  # the path of a socket must be short
    sockets = Path(temporary.name)
    monkeypatch.setattr("tempfile.tempdir", temporary.name)
    before = open_descriptors()
    made = Stage(directory)
    try:
        yield made
    finally:
        for each in made.candidates:
            await soon(each.swept.wait())
        left = made.processes()
        for pid in left:
            os.kill(pid, 9)
    assert not left, "processes are left"
    assert not list(made.records.iterdir()), "records are left"
    assert not list(sockets.iterdir()), "sockets are left"
    temporary.cleanup()
    await become(lambda: len(open_descriptors()) <= len(before), "descriptors to be closed")


# --- what is ready


@pytest_twisted.ensureDeferred
async def test_a_good_server_passes_and_is_ended_in_good_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "GRACE", PATIENCE)
    async with stage(tmp_path, monkeypatch) as at:
        assert 0 < await at.passes(at.trial(GOOD)) < PATIENCE
        assert at.said().count("asked /healthz") == 3
        assert "b'localhost'" in at.said()
        assert "hookdeploy-health" in at.said()
        assert "('127.0.0.1', " in at.said(), "an app may want to know its client"
        assert "shut down in good order" in at.said()


@pytest_twisted.ensureDeferred
async def test_a_redirection_is_a_good_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        await at.passes(at.trial(MOVED))


@pytest.mark.parametrize("bind", ["unix:/run/blog.sock", "[::1]:8080"])
@pytest_twisted.ensureDeferred
async def test_the_private_socket_is_of_the_same_family_as_the_public_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bind: str
) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        if bind.startswith("[") and probe.connect_ex(("::1", 9)) not in {0, 111}:
            pytest.skip("there is no IPv6 here")
    async with stage(tmp_path, monkeypatch) as at:
        await at.passes(at.trial(GOOD, bind=bind))
        assert ("asked /healthz ('::1', " if bind.startswith("[") else "asked /healthz None ") in at.said()


@pytest_twisted.ensureDeferred
async def test_without_a_health_path_no_request_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        assert await at.passes(at.trial(GOOD, health=None)) >= candidate.STEADY
        assert "loaded" in at.said()
        assert "asked" not in at.said()


@pytest_twisted.ensureDeferred
async def test_an_answer_without_end_is_cut_off_and_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "GRACE", 0.5)
    async with stage(tmp_path, monkeypatch) as at:
        await at.passes(at.trial(ENDLESS))


@pytest_twisted.ensureDeferred
async def test_the_seconds_of_steady_life_are_not_those_of_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "STEADY", 6.0)
    async with stage(tmp_path, monkeypatch) as at:
        # A program that is there at once: the limit is for its boot.
        await at.passes(at.trial("", argv=(sys.executable, "-c", SPEAKS_NO_HTTP), health=None, limit=5.0))


# --- what is not


@pytest.mark.parametrize("health", ["/healthz", None])
@pytest.mark.parametrize(
    ("source", "words"),
    [(LIFESPAN_FAILS, "no database"), (IMPORT_ERROR, "no settings found")],
    ids=["lifespan", "import"],
)
@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_start_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str, health: str | None
) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        at.log.write_text("words of an earlier server\n")
        failed = await at.fails(at.trial(source, health=health))
        assert failed.summary in {"it ended before it was ready: exit 1", "it ended before it was ready: exit 3"}
        assert words in failed.tail
        assert "earlier" not in failed.tail


@pytest.mark.parametrize("health", ["/healthz", None])
@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_on_its_way_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, health: str | None
) -> None:
    monkeypatch.setattr(candidate, "GRACE", 0.5)
    async with stage(tmp_path, monkeypatch) as at:
        at.reactor = up_when(lambda: "waiting for the database" in at.said(), 3.0)
        failed = await at.fails(at.trial(LIFESPAN_HANGS, health=health, limit=3.0))
        assert failed.summary == "it was not ready after 3 s (health_timeout)"
        assert "waiting for the database" in failed.tail


@pytest_twisted.ensureDeferred
async def test_a_server_that_accepts_and_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "GRACE", 0.5)
    async with stage(tmp_path, monkeypatch) as at:
        at.reactor = up_when(lambda: "asked /healthz" in at.said(), 3.0)
        failed = await at.fails(at.trial(SILENT, limit=3.0))
        assert failed.summary == "it was not ready after 3 s (health_timeout)"
        assert "asked /healthz" in failed.tail


@pytest_twisted.ensureDeferred
async def test_a_bad_answer_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(at.trial(SICK, limit=1000.0))
        assert failed.summary == "/healthz answered 500"
        assert at.said().count("asked") == 1


@pytest_twisted.ensureDeferred
async def test_an_answer_that_breaks_off_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(at.trial(BREAKS_OFF, limit=1000.0))
        assert failed.summary.startswith("/healthz gave no complete answer: ")
        assert "the connection to the database is lost" in failed.tail


@pytest_twisted.ensureDeferred
async def test_what_is_no_http_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(at.trial("", argv=(sys.executable, "-c", SPEAKS_NO_HTTP), limit=1000.0))
        assert failed.summary.startswith("/healthz gave no complete answer: ")


@pytest_twisted.ensureDeferred
async def test_a_server_that_dies_when_it_is_asked_is_told_by_its_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P59."""
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(at.trial(DIES_WHEN_ASKED))
        assert failed.summary == "it ended before it was ready: exit 9"
        assert "out of memory" in failed.tail


@pytest_twisted.ensureDeferred
async def test_good_answers_are_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "AFTERMATH", PATIENCE)
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(at.trial(DIES_AFTER_ITS_ANSWERS))
        assert failed.summary == "it ended before it was ready: exit 4"


@pytest_twisted.ensureDeferred
async def test_without_a_health_path_a_server_must_live_on_after_it_has_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "STEADY", PATIENCE)
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(at.trial(DIES_LATER, health=None))
        assert failed.summary == "it ended before it was ready: exit 3"


@pytest_twisted.ensureDeferred
async def test_a_program_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(at.trial(GOOD, argv=("/nowhere/uvicorn", "--fd", "{fd}")))
        assert failed.summary == "no such program: /nowhere/uvicorn"
        assert failed.tail == ""


@pytest_twisted.ensureDeferred
async def test_a_private_socket_that_cannot_be_had_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
        failed = await at.fails(at.trial(GOOD, bind="unix:/run/blog.sock"))
        assert "No such file or directory" in failed.summary


@pytest_twisted.ensureDeferred
async def test_a_log_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P84."""
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(replace(at.trial(GOOD), log=tmp_path / "nowhere" / "log"))
        assert "No such file or directory" in failed.summary


# --- how it ends


@pytest_twisted.ensureDeferred
async def test_the_answer_does_not_wait_for_a_server_that_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "GRACE", 1.0)
    async with stage(tmp_path, monkeypatch) as at:
        made = at.candidate(at.trial(STUBBORN))
        await made.try_out()
        assert not made.over.happened
        assert await soon(made.over.wait()) == "signal 9"


@pytest_twisted.ensureDeferred
async def test_what_the_app_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate, "GRACE", 1.0)
    monkeypatch.setattr(candidate, "SWEEP_INTERVAL", 1.0)
    async with stage(tmp_path, monkeypatch) as at:
        at.reactor = up_when(lambda: made.over.happened, 1.0)
        made = at.candidate(at.trial(LEAVES_A_CHILD))
        await made.try_out()
        await soon(made.over.wait())
        assert len(at.processes()) >= 1
        await soon(made.swept.wait())
        assert at.processes() == []


@pytest.mark.parametrize("health", ["/healthz", None])
@pytest_twisted.ensureDeferred
async def test_a_trial_that_is_cancelled_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, health: str | None
) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        made = at.candidate(at.trial(LEAVES_A_CHILD + SILENT + LIFESPAN_HANGS, health=health))
        trial = Deferred.fromCoroutine(made.try_out())
        await become(lambda: "waiting for the database" in at.said())
        trial.cancel()
        with pytest.raises(CancelledError):
            await soon(trial)
        assert made.swept.happened
        assert at.processes() == []


@pytest_twisted.ensureDeferred
async def test_a_trial_that_is_cancelled_while_it_is_asked_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        made = at.candidate(at.trial(SILENT))
        trial = Deferred.fromCoroutine(made.try_out())
        await become(lambda: at.log.exists() and "asked" in at.said())
        trial.cancel()
        trial.cancel()
        with pytest.raises(CancelledError):
            await soon(trial)
        assert made.swept.happened


@pytest_twisted.ensureDeferred
async def test_a_trial_that_is_cancelled_at_its_very_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        trial = Deferred.fromCoroutine(at.candidate(at.trial(GOOD)).try_out())
        trial.cancel()
        with pytest.raises(CancelledError):
            await soon(trial)


@pytest_twisted.ensureDeferred
async def test_a_candidate_that_a_killed_hookdeploy_has_left_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P83."""
    async with stage(tmp_path, monkeypatch) as at:
        made = at.candidate(at.trial(LEAVES_A_CHILD + SILENT))
        trial = Deferred.fromCoroutine(made.try_out())
        await become(lambda: at.log.exists() and "asked" in at.said())
        leftovers.end_all(at.records)  # as the next one does
        with pytest.raises(StepFailed, match="it ended before it was ready"):
            await soon(trial)


@pytest_twisted.ensureDeferred
async def test_a_candidate_holds_nothing_but_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        stray = os.open(tmp_path, os.O_RDONLY)
        os.set_inheritable(stray, True)
        made = at.candidate(at.trial("", argv=("sleep", "1000"), limit=PATIENCE))
        trial = Deferred.fromCoroutine(made.try_out())
        try:
            pid = made.pid
            assert pid is not None
            await become(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
            assert os.getsid(pid) == pid
            given = {0: "/dev/null", 1: str(at.log), 2: str(at.log), 3: "socket:"}
            await become(  # it may be loading its libraries
                lambda: {fd: what.partition("[")[0] for fd, what in descriptors(pid).items()} == given
            )
        finally:
            os.close(stray)
            trial.cancel()
            with pytest.raises(CancelledError):
                await soon(trial)


# --- gunicorn with ASGI


def gunicorn(at: Stage, source: str, *arguments: str, files: Mapping[str, str] | None = None) -> Trial:
    """The trial of an ASGI app under gunicorn."""
    release = tree(at.directory / "release", source, files=files)
    argv = commands.gunicorn(
        interpreter=Path(sys.executable),
        borrowed_from=None,
        gate=GATE,
        name="blog",
        workers=4,
        graceful_timeout=10.0,
        arguments=("-k", "asgi", *arguments, *candidate.GUNICORN_ON_TRIAL),
        wsgi="wsgi:application",
    )
    launch = Launch(release, Environment(Path(sys.executable)), {**PLAIN_ENVIRONMENT, "GUNICORN_CMD_ARGS": "--daemon"})
    return Trial(
        argv=argv,
        env=candidate.ungated(launch),
        cwd=release.path,
        bind="127.0.0.1:8080",
        log=at.log,
        records=at.records,
        health="/healthz",
        limit=PATIENCE,
    )


@pytest_twisted.ensureDeferred
async def test_a_good_app_passes_under_gunicorn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        await at.passes(gunicorn(at, GOOD, "--workers", "3"))
        assert at.said().count("asked /healthz") == 3
        assert at.said().count("loaded") == 1, "one worker is enough"


@pytest_twisted.ensureDeferred
async def test_a_sick_app_fails_under_gunicorn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        assert (await at.fails(gunicorn(at, SICK))).summary == "/healthz answered 500"


@pytest_twisted.ensureDeferred
async def test_an_app_that_cannot_be_imported_fails_under_gunicorn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(gunicorn(at, IMPORT_ERROR))
        assert failed.summary == "it ended before it was ready: exit 3"
        assert "no settings found" in failed.tail


@pytest_twisted.ensureDeferred
async def test_an_app_whose_workers_die_when_they_are_asked_fails_under_gunicorn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P59."""
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(gunicorn(at, DIES_WHEN_ASKED))
        assert failed.summary.startswith("/healthz gave no complete answer: ")


@pytest_twisted.ensureDeferred
async def test_the_apps_own_configuration_counts_but_for_what_takes_the_candidate_out_of_our_hands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = """
bind = "127.0.0.1:1"
workers = 5
daemon = reload = True
pidfile = "pid"
raw_env = ["COLOUR=red"]

def post_worker_init(worker):
    print("our own hook", flush=True)

def worker_exit(server, worker):
    print("our other hook", flush=True)
"""
    monkeypatch.setattr(candidate, "GRACE", PATIENCE)
    async with stage(tmp_path, monkeypatch) as at:
        source = GOOD + "print('colour', os.environ['COLOUR'], 'HOOKDEPLOY_GATE' in os.environ, flush=True)\n"
        await at.passes(gunicorn(at, source, files={"gunicorn.conf.py": configuration}))
        assert "colour red False" in at.said()
        assert at.said().count("our own hook") == 1
        assert at.said().count("our other hook") == 1
        assert not (tmp_path / "release" / "pid").exists()


@pytest_twisted.ensureDeferred
async def test_gunicorn_finds_the_unix_socket_that_it_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(tmp_path, monkeypatch) as at:
        await at.passes(replace(gunicorn(at, GOOD), bind="unix:/run/blog.sock"))
        assert "FileNotFoundError" not in at.said()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another account needs root")
@pytest_twisted.ensureDeferred
async def test_a_candidate_runs_as_the_account_of_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ("sh", "-c", "id -un; exit 5")
    async with stage(tmp_path, monkeypatch) as at:
        failed = await at.fails(replace(at.trial("", argv=argv), user="nobody", cwd=Path("/")))
        assert failed.summary == "it ended before it was ready: exit 5"
        assert failed.tail == "nobody"
