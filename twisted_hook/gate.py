"""The gunicorn configuration file of a generation: no worker accepts before hookdeploy has opened the gate.

gunicorn executes this file inside the app's own interpreter, so it uses the standard library of Python 3.8 and nothing
else. It runs the app's own ``gunicorn.conf.py`` first, takes back what would break supervision, and then

* hands the inherited listening socket to gunicorn by ``LISTEN_FDS``, which gunicorn reads only after ``on_starting``;
* lets each worker import the app, ask the app for its health path inside the process, and report through a pipe;
* reports answers of 500 and above, and bad answers to our own questions after its health, as long as that is news;
* lets it wait until something is written into the gate, a file without a name that every process of the server holds.
  If hookdeploy dies first, the lifeline pipe ends and the worker exits.

It never disturbs a worker that serves: a dead hookdeploy only means that nobody reads its reports.
"""

import contextlib
import errno
import inspect
import io
import json
import os
import runpy
import select
import signal
import sys
import threading
from typing import Any, Callable, List, Optional
from urllib.parse import unquote_to_bytes

_ORDERS = json.loads(os.environ.pop("HOOKDEPLOY_GATE"))
_REPORTS = 4
_LIFELINE = 5
_GATE = 6
_NOT_OPENED = 3
_CHOSEN = len(b"open, chosen")  # the gate's size from when hookdeploy has decided for this generation
_LOOK = 1.0  # seconds after which a worker tells its master that it is alive, and looks at the gate
_IDLE_LOOK = 0.05  # seconds between two looks for connections, of an asgi worker that ends
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # what the master asks a worker with to end
_CLIENT_HAS_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)  # as gunicorn's workers see it
_LONGEST_PROBLEM = 300  # characters; the kernel does not mix up reports of up to 4096 bytes (pipe(7), PIPE_BUF)

for _descriptor in (_REPORTS, _LIFELINE, _GATE) if _ORDERS.get("gated", True) else ():
    os.set_inheritable(_descriptor, False)  # before anything of the app's runs
    os.set_blocking(_descriptor, False)

_news = iter(range(_ORDERS.get("errors", 0)))  # each worker has its own, by the fork

_user = {}
if _ORDERS["user_configuration"]:
    _user = runpy.run_path(_ORDERS["user_configuration"])
    globals().update({name: value for name, value in _user.items() if name not in globals()})

# Each of these takes the server out of hookdeploy's hands.
daemon = False
check_config = False  # it would end at once, as would the next
print_config = False
reload = False
reuse_port = False
pidfile = None
bind: List[str] = []
control_socket_disable = True  # gunicorn 25.1 on: all masters of one user would share one control socket


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
    _take_a_name_of_its_own(server)
    if not _speaks_asgi(server.worker_class):  # there it would be told no status, and delay what follows an answer
        server.cfg.set("post_request", _reporting(server.cfg.post_request))
    _report("starting", workers=server.cfg.workers, worker_class=server.cfg.worker_class_str)
    _chain("on_starting", server)


def _take_a_name_of_its_own(server: Any) -> None:
    """gunicorn (25 on) takes the dirty workers of one with the same name for leftovers, and ends them; those serve."""
    server.proc_name = f"{server.proc_name}-{os.getpid()}"


def _spawn_workers(server: Any) -> None:
    """As the arbiter does it, but without its pause of up to 0.1 s after each: the old generation serves meanwhile."""
    for _ in range(server.num_workers - len(server.WORKERS)):
        try:
            server.spawn_worker()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def when_ready(server: Any) -> None:
    # Either would execute this file again, without its orders; the next commit replaces the server anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if _ORDERS.get("to_be_proven"):
        threading.Thread(target=_retire_if_left_alone, daemon=True).start()
    _chain("when_ready", server)


def _retire_if_left_alone() -> None:
    """If hookdeploy dies while this generation is unproven, nobody else would end it; the old one serves on."""
    lifeline = select.poll()
    lifeline.register(_LIFELINE, 0)  # its end is told unasked, and the byte in it is not (poll(2), POLLHUP)
    lifeline.poll()
    if os.fstat(_GATE).st_size < _CHOSEN:
        os.kill(os.getpid(), signal.SIGTERM)


def pre_fork(server: Any, worker: Any) -> None:
    """A forked worker has the master's signal handlers at first, which only queue; and it is asked to end once."""
    _chain("pre_fork", server, worker)
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def post_fork(server: Any, worker: Any) -> None:
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    worker.load_wsgi = _telling(worker.load_wsgi)
    _chain("post_fork", server, worker)


def _telling(load: Callable[[], None]) -> Callable[[], None]:
    """Load the app, and report what it raises: gunicorn's own log says it in the midst of fifty lines."""

    def load_wsgi() -> None:
        try:
            load()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:_LONGEST_PROBLEM]
            _report("not loaded", pid=os.getpid(), problem=problem)
            raise

    return load_wsgi


def post_worker_init(worker: Any) -> None:
    _chain("post_worker_init", worker)
    _report("checked", pid=os.getpid(), problem=_problem(worker))
    _wait_at_the_gate(worker)
    if hasattr(worker, "nr_conns") and hasattr(worker, "loop"):  # gunicorn's own asgi worker
        _announce_every_close(worker)
    if _speaks_asgi(type(worker)):
        _watch_asgi(worker)
        _report_first_sign_of_life(worker)
    else:
        _report("booted", pid=os.getpid())


def worker_exit(server: Any, worker: Any) -> None:
    """Runs in the worker, if it ends in order; somebody has asked it to, or it has done its ``max_requests``."""
    end = sys.exc_info()[1]
    if os.getpid() != server.pid and isinstance(end, SystemExit) and not end.code:
        _report("retires", pid=os.getpid())
    _chain("worker_exit", server, worker)


def child_exit(server: Any, worker: Any) -> None:
    _report("worker_exited", pid=worker.pid)
    _chain("child_exit", server, worker)


def _wait_at_the_gate(worker: Any) -> None:
    """The lifeline says when to look: a byte that nobody reads wakes every worker, its end, that none will come."""
    patience = min(_LOOK, worker.timeout or _LOOK)  # half of gunicorn's ``timeout``
    while worker.alive and not _gate_is_open():
        worker.notify()
        woken, _, _ = select.select([_LIFELINE], [], [], patience)
        if woken and not _gate_is_open():
            sys.exit(_NOT_OPENED)


def _announce_every_close(worker: Any) -> None:
    """Let gunicorn's asgi worker end only when it has no connection.

    By itself it closes, in the moment in which it is asked to end, each connection whose answer is on its way and has
    promised to keep it (27.0.1): the next request on it would be lost. Here it stays alive while it has connections,
    closes each with an answer that says so, and leaves the idle ones to ``keepalive``.
    """
    theirs = worker.cfg.pre_request
    ending = False

    def pre_request(worker: Any, request: Any) -> None:
        if ending:
            request.must_close = True
        theirs(worker, request)

    def end() -> None:
        nonlocal ending
        if not ending:
            ending = True
            for server in worker.servers:
                _accept_no_more(worker.loop, server)
            worker.loop.call_later(_IDLE_LOOK, end_when_idle, worker.loop.time() + worker.cfg.graceful_timeout)

    def end_when_idle(latest: float) -> None:
        if worker.nr_conns > 0 and worker.loop.time() < latest:
            worker.loop.call_later(_IDLE_LOOK, end_when_idle, latest)
        else:
            worker.alive = False

    worker.cfg.set("pre_request", pre_request)
    worker.loop.add_signal_handler(signal.SIGTERM, end)


def _accept_no_more(loop: Any, server: Any) -> None:
    """Without closing it: asyncio resets what it has accepted and not yet handed over when its server is closed."""
    for listener in server.sockets:
        if not loop.remove_reader(listener):
            server.close()  # uvloop listens by other means, and has no such moment
            break


def _gate_is_open() -> bool:
    return os.fstat(_GATE).st_size > 0


def _speaks_asgi(worker_class: Any) -> bool:
    modules = [base.__module__.lower() for base in worker_class.__mro__]
    return any("asgi" in module or "uvicorn" in module for module in modules)


def _reporting(theirs: Callable[..., None]) -> Callable[..., None]:
    """A ``post_request`` hook that looks at the answer and then calls theirs, which gunicorn has made one of four."""

    def post_request(worker: Any, request: Any, environ: Any, response: Any) -> None:
        _look_at(_status(response), environ.get("HTTP_USER_AGENT"))
        theirs(worker, request, environ, response)

    return post_request


def _report_first_sign_of_life(worker: Any) -> None:
    """The app's lifespan startup comes behind the gate and takes its time; then it accepts and notifies."""
    notify = worker.notify

    def first_notify() -> None:
        worker.notify = notify
        _report("booted", pid=os.getpid())
        notify()

    worker.notify = first_notify


def _watch_asgi(worker: Any) -> None:
    """Look at the answers of an ASGI 3 app; gunicorn's own worker keeps it as ``asgi``, uvicorn's as ``wsgi``."""
    name = "asgi" if hasattr(worker, "asgi") else "wsgi"
    app = getattr(worker, name, None)
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):
        setattr(worker, name, _watched(app))


def _watched(app: Any) -> Any:
    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        status, whole, alone = 0, False, False

        async def see_and_receive() -> Any:
            nonlocal alone
            message = await receive()
            alone = alone or (message["type"] == "http.disconnect" and not status)
            return message

        async def look_and_send(message: Any) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                whole = not message.get("more_body", False)
            await send(message)

        try:
            await app(scope, see_and_receive, look_and_send)
            status = status or 500
        except Exception as error:
            if not whole and not isinstance(error, OSError):  # that is how some say that the client has gone
                status = 500
            raise
        finally:
            # Whose client has gone before the answer began may make of that what it likes.
            _look_at(0 if alone else status, dict(scope["headers"]).get(b"user-agent", b"").decode("latin-1"))

    return watched


def _look_at(status: int, asked_by: Optional[str]) -> None:
    if asked_by == _ORDERS["asks_as"]:
        problem = _problem_of(status)
        if problem is not None:
            _report("checked", pid=os.getpid(), problem=problem)
    elif status >= 500 and next(_news, None) is not None:
        _report("error", status=status)


def _status(response: Any) -> int:
    """What a client was answered. The hook is called with the exception in flight that gunicorn answers with 500."""
    error = sys.exc_info()[1]
    if isinstance(error, StopIteration):  # the connection is closed; if an answer was broken off, it says of what
        error = error.__context__
    if (isinstance(error, OSError) and error.errno in _CLIENT_HAS_GONE) or _is_of_the_request(error):
        return 0
    if error is not None:
        return 500
    return getattr(response, "status_code", None) or 0


def _is_of_the_request(error: Optional[BaseException]) -> bool:
    """Whether it comes of a body that gunicorn could not make out, or that broke off."""
    while error is not None and type(error).__module__ != "gunicorn.http.errors":
        error = error.__cause__ or error.__context__
    return error is not None


def _problem_of(status: Optional[int]) -> Optional[str]:
    path = _ORDERS["health"]
    if status is None:
        return f"{path} gave no answer"
    if status == 0 or 200 <= status < 400:
        return None
    return f"{path} answered {status}"


def _problem(worker: Any) -> Optional[str]:
    """What is wrong with the app's health path, or None."""
    path = _ORDERS["health"]
    if path is None or _speaks_asgi(type(worker)):
        return None
    try:
        status = _ask(worker.wsgi, path)
    except BaseException as error:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            raise
        worker.log.exception("the health check of %s raised", path)
        return f"{path} raised {type(error).__name__}: {error}"[:_LONGEST_PROBLEM]
    return _problem_of(status)


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


if not _ORDERS.get("gated", True):  # on trial: there is nobody to report to, and its socket is private
    for _hook in ("when_ready", "pre_fork", "post_fork", "post_worker_init", "worker_exit", "child_exit"):
        del globals()[_hook]
        if _hook in _user:
            globals()[_hook] = _user[_hook]

    def on_starting(server: Any) -> None:
        _take_a_name_of_its_own(server)
        _chain("on_starting", server)
