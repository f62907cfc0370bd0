"""What an app is served by: gunicorn in the environment of its release, and the answer at its health path.

Looks and asks; it runs none of the app's code.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from twisted_hook import addresses
from twisted_hook.cli.doctor.finding import Finding, ok, problem, skipped, warning
from twisted_hook.cli.doctor.patient import Patient
from twisted_hook.cli.transport import over_socket
from twisted_hook.config import AppConfig
from twisted_hook.environments import KeyedEnvironments, found_in
from twisted_hook.model import Environment

OLDEST_GUNICORN = (27, 0, 1)
"""Below, requests are lost at every swap of gthread workers: https://github.com/benoitc/gunicorn/issues/3821"""


def gunicorn(patient: Patient, app: AppConfig) -> Iterator[Finding]:
    """Which gunicorn serves the current release."""
    name = f"gunicorn of {app.name}"
    if app.wsgi is None:
        yield skipped(name, "it is not served by gunicorn")
        return
    if patient.state is None:
        yield skipped(name, "no state directory is known")
        return
    directory = patient.state / "apps" / app.name
    tree = app.path or directory / "current"
    if not tree.exists():
        yield skipped(name, "nothing has been deployed yet", f"hookdeploy deploy {app.name}")
        return
    try:
        environment = _environment_of(patient, app, directory / "environments", Path(tree).resolve())
    except OSError as error:
        yield skipped(name, f"{error.filename} cannot be read: {error.strerror}")
        return
    if environment is None:
        words = "the environment of the current release is gone; what runs goes on until it has to start again"
        yield problem(name, words, f"hookdeploy deploy {app.name}")
    else:
        yield judge_gunicorn(name, environment, ours=importlib.metadata.version("gunicorn"))


def _environment_of(patient: Patient, app: AppConfig, directory: Path, tree: Path) -> Environment | None:
    interpreter = Path(sys.executable)
    if app.build != "auto":
        return found_in(tree, interpreter)
    kept = KeyedEnvironments(
        directory=directory, interpreter=interpreter, version=sys.version, path=patient.ambient.path, timeout=0.0
    )
    return kept.made_for(tree, tree.name)


def judge_gunicorn(name: str, environment: Environment, *, ours: str) -> Finding:
    """``ours`` is the version that an app without one borrows."""
    borrowed = environment.gunicorn is None
    version, where = environment.gunicorn or ours, environment.directory or environment.interpreter
    remedy = 'ask for "gunicorn>=27.0.1" where the app lists what it needs, and push'
    if borrowed:
        remedy = f"{shlex.quote(sys.executable)} -m pip install 'gunicorn>=27.0.1'"
    words = f"gunicorn {version}, {'borrowed from hookdeploy, for' if borrowed else 'in'} {where}"
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST_GUNICORN:
        return warning(name, f"{words}: before 27.0.1 a swap may lose requests of threaded workers", remedy)
    return ok(name, words)


# --- health


def health(patient: Patient, app: AppConfig) -> Iterator[Finding]:
    """What the app answers at its own address."""
    name = f"health of {app.name}"
    if not app.served:
        yield skipped(name, "it has no server")
        return
    if patient.running is None:
        yield skipped(name, "no server runs that would keep it", "sudo systemctl start hookdeploy")
        return
    try:
        with _connected(app) as client:
            status = client.get(app.health or "/").status_code
    except (httpx.HTTPError, OSError) as error:
        remedy = f"hookdeploy status {app.name}"
        yield problem(name, f"{app.bind} does not answer: {str(error) or type(error).__name__}", remedy)
        return
    yield judge_health(name, app, status)


def _connected(app: AppConfig) -> httpx.Client:
    if app.bind.startswith("unix:"):
        transport = over_socket(Path(app.bind.removeprefix("unix:")))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=10.0)
    host, port = addresses.bound_address(app.bind) or ("", 0)
    shown = f"[{host}]" if ":" in host else host or "127.0.0.1"
    headers = {"host": "localhost"}  # as hookdeploy's own questions have it
    return httpx.Client(base_url=f"http://{shown}:{port}", headers=headers, timeout=10.0, trust_env=False)


def judge_health(name: str, app: AppConfig, status: int) -> Finding:
    """What the status means at the health path, or at ``/`` where there is none."""
    words = f"{app.bind} answers {status} at {app.health or '/'}"
    if status < 400:
        return ok(name, words)
    if app.health is None and status < 500:
        return ok(name, f"{words}; it has no health path of its own")
    return problem(name, words, f"hookdeploy status {app.name}; then look at what the app itself logs")
