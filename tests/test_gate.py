"""gunicorn under our configuration file: the app's own file is honoured, and nobody passes the gate too early."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet.interfaces import IProcessTransport

from tests.waiting import become
from tests.wsgiapps import ASYNCHRONOUS, GOOD, REACTOR, Site, site, soon
from twisted_hook.generation import LIFELINE, REPORTS, ServerProcess
from twisted_hook.model import Launch, Phase, StepFailed
from twisted_hook.once import Once

TAKES_THE_SERVER_AWAY = """
import json as os, time as select

daemon = True
check_config = True
print_config = True
reload = True
reuse_port = True
pidfile = "server.pid"
bind = "127.0.0.1:1"
control_socket_disable = False
keepalive = 7

io = sys = contextlib = json = None
_ORDERS = _REPORTS = _LIFELINE = _POLL = _NOT_OPENED = _GATE = "ours"
_report = _chain = _problem = _ask = _wait_at_the_gate = _lifeline_has_ended = None

def when_ready(server):
    import json
    names = ["daemon", "check_config", "print_config"]
    names += ["reload", "reuse_port", "pidfile", "bind", "control_socket_disable", "keepalive"]
    with open("seen", "w") as file:
        json.dump({name: getattr(server.cfg, name) for name in names}, file)
"""

TELLS_ITS_ENVIRONMENT = """
import json, os

with open("environment", "w") as file:
    json.dump(dict(os.environ), file)

def application(environ, start_response):
    start_response("200 OK", [])
    return [TEXT]
"""


def answering(status: str) -> str:
    """An app that answers everything with this status."""
    return f"def application(environ, start_response):\n    start_response({status!r}, [])\n    return [b'']\n"


def longest_queue(listener: socket.socket) -> int:
    """How many connections may wait in a listening socket: its ``tcpi_sacked`` (tcp_info of linux/tcp.h)."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int.from_bytes(info[28:32], sys.byteorder)


async def why_not(blog: Site, launch: Launch) -> StepFailed:
    """How the launch of something that cannot serve ends."""
    with pytest.raises(StepFailed) as caught:
        await blog.serve(launch)
    return caught.value


# --- the app's own gunicorn.conf.py


EVERY_HOOK = """
def note(what):
    with open("hooks", "a") as file:
        print(what, file=file)

def on_starting(server): note("on_starting")
def when_ready(server): note("when_ready")
def pre_fork(server, worker): note("pre_fork")
def post_fork(server, worker): note("post_fork")
def post_worker_init(worker): note("post_worker_init")
def pre_request(worker, request): note("pre_request " + request.path)
def worker_exit(server, worker): note("worker_exit")
def child_exit(server, worker): note("child_exit")
def nworkers_changed(server, new_value, old_value): note("nworkers_changed")
def on_exit(server): note("on_exit")
"""
HOOKS_OF_A_LIFE = [
    *("on_starting", "when_ready", "pre_fork", "post_fork", "post_worker_init"),
    *("pre_request /seen", "post_request", "worker_exit", "child_exit", "on_exit"),
]


@pytest.mark.parametrize(
    ("worker", "source", "told"),
    [
        ("sync", GOOD, "worker, request"),
        ("gthread", GOOD, "worker, request, environ, response"),
        ("asgi", ASYNCHRONOUS, "worker, request, environ, response"),
    ],
    ids=["sync", "gthread", "asgi"],
)
@pytest_twisted.ensureDeferred
async def test_every_hook_of_the_apps_own_configuration_runs_once(
    tmp_path: Path, worker: str, source: str, told: str
) -> None:
    """Ours are chained before or behind it."""
    configuration = f'{EVERY_HOOK}\ndef post_request({told}): note("post_request")\nworker_class = "{worker}"\n'
    async with site(tmp_path) as blog:
        launch = await blog.serve(blog.launch(source, files={"gunicorn.conf.py": configuration}))
        assert await blog.get("/seen") == "one"
    said = (launch.tree.path / "hooks").read_text().splitlines()
    assert [hook for hook in said if hook != "nworkers_changed"] == HOOKS_OF_A_LIFE


HARMLESS = {
    "the process": """
import os
os.makedirs("sub", exist_ok=True)
chdir = "sub"
pythonpath = "lib"
raw_env = ["COLOUR=green", "LISTEN_FDS=3"]
umask = 0o077
worker_tmp_dir = "/dev/shm"
threads = 2
timeout = 20
backlog = 1
logconfig_dict = {"version": 1, "disable_existing_loggers": True}
""",
    "the workers": """
max_requests = 2
timeout = 0
wsgi_app = "other:application"
errorlog = "err.log"
capture_output = True
control_socket = "gunicorn.ctl"  # shared by all
""",
}


@pytest.mark.parametrize("configuration", HARMLESS.values(), ids=HARMLESS.keys())
@pytest_twisted.ensureDeferred
async def test_what_else_the_apps_own_configuration_sets_is_no_harm(tmp_path: Path, configuration: str) -> None:
    async with site(tmp_path, health="/") as blog:
        longest = longest_queue(blog.listener)
        for text in ("one", "two"):
            await blog.serve(blog.launch(text=text, files={"gunicorn.conf.py": configuration}))
            await become(lambda: len(blog.processes()) == 2, "the old one to end")
            assert [await blog.get() for _ in range(5)] == [text] * 5
        assert longest_queue(blog.listener) == longest


@pytest_twisted.ensureDeferred
async def test_the_apps_own_configuration_cannot_take_the_server_away(tmp_path: Path) -> None:
    async with site(tmp_path, health="/") as blog:
        launch = await blog.serve(blog.launch(files={"gunicorn.conf.py": TAKES_THE_SERVER_AWAY}))
        assert await blog.get() == "one"
        seen = json.loads((launch.tree.path / "seen").read_text())
        assert seen == {
            "daemon": False,
            "check_config": False,
            "print_config": False,
            "reload": False,
            "reuse_port": False,
            "pidfile": None,
            "bind": [],
            "control_socket_disable": True,
            "keepalive": 7,
        }
        assert not (launch.tree.path / "server.pid").exists()


@pytest_twisted.ensureDeferred
async def test_a_faulty_configuration_of_the_app_fails_with_its_traceback(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        failed = await why_not(blog, blog.launch(files={"gunicorn.conf.py": "workers = cores()\n"}))
        assert "NameError: name 'cores' is not defined" in failed.tail


@pytest.mark.parametrize(
    ("app", "problem"),
    [
        ("import nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def application(", "SyntaxError: '(' was never closed (wsgi.py, line 2)"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_keeps_an_app_from_being_loaded_comes_before_gunicorns_own_words(
    tmp_path: Path, app: str, problem: str
) -> None:
    """P81: and its traceback is among the last words."""
    async with site(tmp_path) as blog:
        with pytest.raises(StepFailed) as caught:
            await blog.serve(blog.launch(app))
    assert caught.value.summary == f"the new server did not start: the app could not be loaded: {problem}"
    assert problem.partition(" (")[0] in caught.value.tail


@pytest_twisted.ensureDeferred
async def test_an_app_that_is_preloaded_serves_too(tmp_path: Path) -> None:
    async with site(tmp_path, health="/") as blog:
        await blog.serve(blog.launch(files={"gunicorn.conf.py": "preload_app = True\n"}))
        assert await blog.get() == "one"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can let workers be somebody else")
@pytest_twisted.ensureDeferred
async def test_workers_that_give_up_their_rights_pass_the_gate(tmp_path_factory: pytest.TempPathFactory) -> None:
    private = tmp_path_factory.mktemp("private")
    private.chmod(0o700)
    async with site(private, health="/") as blog:
        launch = blog.launch(files={"gunicorn.conf.py": 'user = "nobody"\npreload_app = True\n'})
        await blog.serve(launch)
        assert await blog.get() == "one"


# --- the environment


@pytest_twisted.ensureDeferred
async def test_the_app_sees_what_it_is_given_and_no_word_of_the_gate(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = await blog.serve(blog.launch(TELLS_ITS_ENVIRONMENT, env={"COLOUR": "red"}))
        seen = json.loads((launch.tree.path / "environment").read_text())
        assert "gunicorn" in seen.pop("SERVER_SOFTWARE")
        assert seen == {**launch.env}


@pytest_twisted.ensureDeferred
async def test_gunicorns_own_variable_does_not_reach_it(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve(blog.launch(env={"GUNICORN_CMD_ARGS": "--check-config --bind 127.0.0.1:1 --pid server.pid"}))
        assert await blog.get() == "one"


# --- the health check


@pytest_twisted.ensureDeferred
async def test_only_an_app_that_answers_its_health_path_well_serves(tmp_path: Path) -> None:
    """P81."""
    async with site(tmp_path, health="/healthz") as blog:
        for status in ("204 No Content", "302 Found"):
            await blog.serve(blog.launch(answering(status)))
        failed = await why_not(blog, blog.launch(answering("404 Not Found")))
        assert "/healthz answered 404" in failed.summary


@pytest_twisted.ensureDeferred
async def test_the_health_check_is_a_request_as_gunicorn_would_make_it(tmp_path: Path) -> None:
    source = """
from wsgiref.validate import validator
from urllib.parse import parse_qs

@validator
def application(environ, start_response):
    good = environ["PATH_INFO"] == "/health z" and parse_qs(environ["QUERY_STRING"]) == {"deep": ["1"]}
    start_response("200 OK" if good else "400 Bad Request", [("Content-Type", "text/plain")])
    return iter([b"fine"])
"""
    async with site(tmp_path, health="/health%20z?deep=1") as blog:
        await blog.serve(blog.launch(source))


@pytest_twisted.ensureDeferred
async def test_an_app_that_answers_only_when_its_body_is_read_is_healthy(tmp_path: Path) -> None:
    source = """
class Body:
    def __init__(self, start_response): self.start_response = start_response
    def __iter__(self):
        self.start_response("200 OK", [])
        yield b"fine"
    def close(self): open("closed", "w").close()

def application(environ, start_response):
    return Body(start_response)
"""
    async with site(tmp_path, health="/healthz") as blog:
        launch = await blog.serve(blog.launch(source))
        assert (launch.tree.path / "closed").exists()


@pytest_twisted.ensureDeferred
async def test_an_app_that_never_starts_its_answer_is_told_so(tmp_path: Path) -> None:
    async with site(tmp_path, health="/healthz") as blog:
        failed = await why_not(blog, blog.launch("def application(environ, start_response):\n    return []\n"))
        assert "/healthz gave no answer" in failed.summary


@pytest_twisted.ensureDeferred
async def test_a_problem_of_any_length_is_reported(tmp_path: Path) -> None:
    source = 'def application(environ, start_response):\n    raise ValueError("\\x1b[31m\U0001f4a5\\n" * 100_000)\n'
    async with site(tmp_path, workers=2, health="/healthz") as blog:
        failed = await why_not(blog, blog.launch(source))
        assert "/healthz raised ValueError: \U0001f4a5" in failed.summary


STARTS_UP = """
async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        STARTUP
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": TEXT})
"""
STARTUPS = {
    'await send({"type": "lifespan.startup.failed", "message": "no database"})': "did not start",
    "raise SystemExit(7)": "did not start",
    "import asyncio; print('starts up', flush=True); await asyncio.sleep(1000)": "0 of 1 workers were ready after 2 s",
}


@pytest_twisted.ensureDeferred
async def test_an_asynchronous_app_whose_startup_fails_does_not_serve(tmp_path: Path) -> None:
    """P81. It starts up behind the gate."""
    async with site(tmp_path, drain=1.0, gunicorn=("--worker-class", "asgi")) as blog:
        await blog.serve(blog.launch(ASYNCHRONOUS))
        for startup, said in STARTUPS.items():
            if "workers" in said:
                blog.hurry(2.0, lambda: "starts up" in blog.said())
            failed = await why_not(blog, blog.launch(STARTS_UP.replace("STARTUP", startup), text="two"))
            assert said in failed.summary, startup
            await become(lambda: len(blog.processes()) == 2, "the new one to end")
            assert await blog.get() == "one"


@pytest_twisted.ensureDeferred
async def test_an_asynchronous_app_is_served_without_a_check(tmp_path: Path) -> None:
    async with site(tmp_path, health="/healthz", gunicorn=("--worker-class", "asgi")) as blog:
        await blog.serve(blog.launch(ASYNCHRONOUS))
        assert await blog.get() == "one"


# --- the gate


@pytest_twisted.ensureDeferred
async def test_what_the_app_starts_inherits_no_descriptor_of_ours(tmp_path: Path) -> None:
    source = 'import os\nos.system("ls -l /proc/self/fd > inherited")\n'
    async with site(tmp_path) as blog:
        launch = await blog.serve(blog.launch(source + GOOD))
        inherited = (launch.tree.path / "inherited").read_text()
        assert str(blog.log) in inherited
        assert "pipe:" not in inherited
        assert "memfd:" not in inherited


@pytest_twisted.ensureDeferred
async def test_a_hookdeploy_that_reads_nothing_blocks_no_worker(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        flags = (Path("/proc") / str(blog.server.status.pid) / "fdinfo" / str(REPORTS)).read_text().split()
        assert int(flags[flags.index("flags:") + 1], 8) & os.O_NONBLOCK


@pytest_twisted.ensureDeferred
async def test_a_worker_that_gunicorn_replaces_passes_the_open_gate(tmp_path: Path) -> None:
    async with site(tmp_path, health="/") as blog:
        await blog.serve()
        master = blog.server.status.pid
        (worker,) = (pid for pid in blog.processes() if pid != master)
        os.kill(worker, signal.SIGKILL)
        await become(lambda: len(blog.processes()) == 2 and worker not in blog.processes())
        assert await blog.get() == "one"
        assert blog.server.status.pid == master
        assert blog.server.status.deaths == 0


@pytest_twisted.ensureDeferred
async def test_workers_of_asyncio_leave_the_queue_as_long_as_it_was(tmp_path: Path) -> None:
    """asyncio calls listen(100) on the socket that all generations share."""
    async with site(tmp_path, gunicorn=("--worker-class", "asgi")) as blog:
        before = longest_queue(blog.listener)
        assert before > 100
        await blog.serve(blog.launch(ASYNCHRONOUS))
        assert longest_queue(blog.listener) == before
        (worker,) = (pid for pid in blog.processes() if pid != blog.server.status.pid)
        os.kill(worker, signal.SIGKILL)
        await become(lambda: blog.said().count("ASGI server listening") == 2, "the next worker")
        await become(lambda: longest_queue(blog.listener) == before, "the queue")


@pytest_twisted.ensureDeferred
async def test_signals_that_reload_a_gunicorn_do_not_end_it(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        master = blog.server.status.pid
        assert master is not None
        os.kill(master, signal.SIGHUP)
        os.kill(master, signal.SIGUSR2)
        os.kill(master, signal.SIGUSR1)  # gunicorn takes signals in order, and says so
        await become(lambda: "Handling signal: usr1" in blog.said())
        assert await blog.get() == "one"
        assert blog.server.status.pid == master
        assert "Hang up" not in blog.said()


class NeverOpening(ServerProcess):
    """A generation whose gate stays shut."""

    def __init__(self, *orders: Any) -> None:
        super().__init__(*orders)
        self.at_the_gate: Once[None] = Once()

    def open_gate(self) -> None:
        self.at_the_gate.happen(None)


class DyingBeforeTheGate(ServerProcess):
    """A generation whose hookdeploy dies at the moment at which it would open the gate."""

    def open_gate(self) -> None:
        cast("IProcessTransport", self.transport).closeChildFD(LIFELINE)


class DyingBehindTheGate(ServerProcess):
    """A generation whose hookdeploy dies right after it has opened the gate."""

    def open_gate(self) -> None:
        super().open_gate()
        cast("IProcessTransport", self.transport).closeChildFD(LIFELINE)


SLOW_LOOK_AT_THE_LIFELINE = """
import select, time
_look = select.select

def _slow_look(*arguments):
    time.sleep(0.05)
    return _look(*arguments)

select.select = _slow_look
"""


def started(kind: type[ServerProcess], blog: Site, configuration: str = "") -> Any:
    phases: list[Phase] = []
    launch = blog.launch(files={"gunicorn.conf.py": configuration})
    process = kind(REACTOR, blog.server._orders(launch), phases.append)
    process.start()
    return process


@pytest_twisted.ensureDeferred
async def test_workers_at_the_gate_end_at_once_when_they_are_asked_to(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        process = started(NeverOpening, blog)
        await soon(process.at_the_gate.wait())
        os.kill(process.pid, signal.SIGTERM)
        await soon(process.swept.wait())


IS_ASKED_AS_IT_IS_FORKED = """
import gunicorn.util, signal, time

def begin(title):
    if title.startswith("worker"):  # the first that it does
        open("begun", "w").close()
        while signal.SIGTERM not in signal.sigpending():
            time.sleep(0.01)

gunicorn.util._setproctitle = begin
"""
IS_ASKED_BEFORE_IT_BOOTS = """
import time

def post_fork(server, worker):
    open("begun", "w").close()
    time.sleep(600)
"""


@pytest.mark.parametrize(
    "configuration", [IS_ASKED_AS_IT_IS_FORKED, IS_ASKED_BEFORE_IT_BOOTS], ids=["forked", "before it boots"]
)
@pytest_twisted.ensureDeferred
async def test_workers_that_have_just_begun_end_at_once_when_they_are_asked_to(
    tmp_path: Path, configuration: str
) -> None:
    """gunicorn asks each of them once, and they do not hear it as long as they have its own signal handlers."""
    async with site(tmp_path) as blog:
        process = started(NeverOpening, blog, configuration)
        await become((tmp_path / process.release / "begun").exists)
        os.kill(process.pid, signal.SIGTERM)
        await soon(process.swept.wait())


@pytest_twisted.ensureDeferred
async def test_workers_end_if_hookdeploy_dies_before_it_opens_the_gate(tmp_path: Path) -> None:
    """P83."""
    async with site(tmp_path, workers=2) as blog:
        process = started(DyingBeforeTheGate, blog)
        assert "workers were ready" not in str(await process.ready.wait()), "they waited for their time to be up"
        await process.swept.wait()
        assert blog.processes() == []


@pytest_twisted.ensureDeferred
async def test_workers_serve_on_if_hookdeploy_dies_behind_the_gate(tmp_path: Path) -> None:
    """P83. Also a worker that was looking in that very moment: it must not see the death and miss the open gate."""
    async with site(tmp_path, workers=2) as blog:
        process = started(DyingBehindTheGate, blog, SLOW_LOOK_AT_THE_LIFELINE)
        assert await process.ready.wait() is None
        assert await blog.get() == "one"
        process.drain()
        await process.swept.wait()


STARTS_SOMETHING = """
import os
os.system("ls -l /proc/self/fd >> held")
"""


@pytest_twisted.ensureDeferred
async def test_what_the_apps_own_configuration_starts_inherits_no_descriptor_of_ours(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        launch = await blog.serve(blog.launch(files={"gunicorn.conf.py": STARTS_SOMETHING}))
        held = (launch.tree.path / "held").read_text()
        assert "memfd:gate" not in held
        assert "pipe:" not in held


DIRTY = """
from gunicorn.dirty.app import DirtyApp

class Model(DirtyApp):
    def __call__(self, action, *args, **kwargs):
        return os.getpid()
"""
ASKS_ITS_MODEL = """
import os
from gunicorn.dirty import get_dirty_client

def application(environ, start_response):
    get_dirty_client().execute("model:Model", "predict")
    start_response("200 OK", [])
    return [TEXT]
"""


@pytest_twisted.ensureDeferred
async def test_a_new_generation_leaves_the_dirty_workers_of_the_old_one_alone(tmp_path: Path) -> None:
    """gunicorn finds its own by the name of the process, takes them for leftovers of a crash, and ends them."""
    settings = {
        "gunicorn.conf.py": "dirty_apps = ['model:Model']\ndirty_workers = 1\n",
        "model.py": f"import os\n{DIRTY}",
    }
    async with site(tmp_path) as blog:
        await blog.serve(blog.launch(ASKS_ITS_MODEL, files=settings))
        await become(lambda: len(blog.processes()) == 4, "the dirty worker and its arbiter")
        before = set(blog.processes())
        assert await blog.get() == "one"
        process = NeverOpening(
            REACTOR, blog.server._orders(blog.launch(ASKS_ITS_MODEL, files=settings)), blog.phases.append
        )
        process.start()
        await become(lambda: len(set(blog.processes()) - before) == 4, "all of the new one")
        assert before <= set(blog.processes())
        assert await blog.get() == "one"
        process.drain()
        await soon(process.swept.wait())
