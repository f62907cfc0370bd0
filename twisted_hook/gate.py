"""The gunicorn configuration file of a generation: no worker accepts before hookdeploy has opened the gate.

gunicorn executes this file inside the app's own interpreter, so it uses the standard library of Python 3.8 and nothing
else. It runs the app's own ``gunicorn.conf.py`` first, takes back what would break supervision, and then

* hands the inherited listening socket to gunicorn by ``LISTEN_FDS``, which gunicorn reads only after ``on_starting``;
* lets each worker import the app, ask the app for its health path inside the process, and report through a pipe;
* lets it wait until something is written into the gate, a file without a name that every process of the server holds.
  If hookdeploy dies first, the lifeline pipe ends and the worker exits.

It never disturbs a worker that serves: a dead hookdeploy only means that nobody reads its reports.
"""

import contextlib
import io
import json
import os
import runpy
import select
import signal
import sys
from typing import Any, Callable, List, Optional
from urllib.parse import unquote_to_bytes

_ORDERS = json.loads(os.environ.pop("HOOKDEPLOY_GATE"))
_REPORTS = 4
_LIFELINE = 5
_GATE = 6
_NOT_OPENED = 3
_LOOK = 1.0  # seconds after which a worker tells its master that it is alive, and looks at the gate
_LONGEST_PROBLEM = 300  # characters; the kernel does not mix up reports of up to 4096 bytes (pipe(7), PIPE_BUF)

_user = {}
if _ORDERS["user_configuration"]:
    _user = runpy.run_path(_ORDERS["user_configuration"])
    globals().update({name: value for name, value in _user.items() if name not in globals()})

# Each of these takes the server out of hookdeploy's hands.
daemon = False
reload = False
reuse_port = False
pidfile = None
bind: List[str] = []
control_socket_disable = True  # gunicorn 25.1 on: all masters of one user would share one control socket

for _descriptor in (_REPORTS, _LIFELINE, _GATE):
    os.set_inheritable(_descriptor, False)
    os.set_blocking(_descriptor, False)


def _report(event: str, **details: Any) -> None:
    details["event"] = event
    with contextlib.suppress(OSError):
        os.write(_REPORTS, json.dumps(details).encode() + b"\n")


def _chain(name: str, *arguments: Any) -> None:
    hook = _user.get(name)
    if hook is not None:
        hook(*arguments)


def on_starting(server: Any) -> None:
    os.environ["LISTEN_FDS"] = "1"
    os.environ["LISTEN_PID"] = str(os.getpid())
    server.spawn_workers = lambda: _spawn_workers(server)
    _report("starting", workers=server.cfg.workers, worker_class=server.cfg.worker_class_str)
    _chain("on_starting", server)


def _spawn_workers(server: Any) -> None:
    """As the arbiter does it, but without its pause of up to 0.1 s after each: the old generation serves meanwhile."""
    for _ in range(server.num_workers - len(server.WORKERS)):
        server.spawn_worker()


def when_ready(server: Any) -> None:
    # Either would execute this file again, without its orders; the next commit replaces the server anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    _chain("when_ready", server)


def post_worker_init(worker: Any) -> None:
    _chain("post_worker_init", worker)
    _report("checked", pid=os.getpid(), problem=_problem(worker))
    _wait_at_the_gate(worker)
    _report("booted", pid=os.getpid())


def child_exit(server: Any, worker: Any) -> None:
    _report("worker_exited", pid=worker.pid)
    _chain("child_exit", server, worker)


def _wait_at_the_gate(worker: Any) -> None:
    """The lifeline says when to look: a byte that nobody reads wakes every worker, its end, that none will come."""
    while worker.alive and not _gate_is_open():
        worker.notify()
        woken, _, _ = select.select([_LIFELINE], [], [], _LOOK)
        if woken and not _gate_is_open():
            sys.exit(_NOT_OPENED)


def _gate_is_open() -> bool:
    return os.fstat(_GATE).st_size > 0


def _problem(worker: Any) -> Optional[str]:
    """What is wrong with the app's health path, or None."""
    path = _ORDERS["health"]
    speaks = type(worker).__module__.lower()
    if path is None or "asgi" in speaks or "uvicorn" in speaks:
        return None
    try:
        status = _ask(worker.wsgi, path)
    except BaseException as error:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise
        worker.log.exception("the health check of %s raised", path)
        return f"{path} raised {type(error).__name__}: {error}"[:_LONGEST_PROBLEM]
    if status is None:
        return f"{path} gave no answer"
    if 200 <= status < 400:
        return None
    return f"{path} answered {status}"


def _ask(app: Callable[..., Any], target: str) -> Optional[int]:
    path, _, query = target.partition("?")
    answered: List[int] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
        answered[:] = [int(status.split(" ", 1)[0])]
        return lambda data: None

    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": target,
        "REQUEST_URI": target,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "hookdeploy",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "0",
        "HTTP_HOST": "localhost",
        "HTTP_USER_AGENT": "hookdeploy-health",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    body = app(environ, start_response)
    try:
        for _ in body:
            pass
    finally:
        if hasattr(body, "close"):
            body.close()
    return answered[0] if answered else None
