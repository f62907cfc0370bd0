"""The machine under it: who runs it, the configuration, permissions, the disk, the clock and Python.

Reads what the kernel and the file system tell; the clock is compared with the one of the forge, if there is one.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from twisted_hook.accounts import Account
from twisted_hook.cli.doctor.finding import Finding, ok, problem, skipped, warning
from twisted_hook.cli.doctor.git import Remote
from twisted_hook.cli.doctor.patient import Patient, name_of
from twisted_hook.cli.forge import GITHUB_HOSTS
from twisted_hook.config import Config, least_free
from twisted_hook.configfile import DEFAULT_NAME
from twisted_hook.githubrest import api_of
from twisted_hook.redaction import clean
from twisted_hook.survey import PASSABLE

OLDEST_PYTHON = (3, 11)
TOLERANCE = 300.0
"""Seconds by which a signed message may be off: Standard Webhooks and GitHub's tokens both say five minutes."""
_OFF = 30.0
"""Seconds from which on a clock is nobody's that is being set."""


def user(patient: Patient) -> Iterator[Finding]:
    """As whom the checks look."""
    us = name_of(os.geteuid())
    if patient.owner is None:
        yield ok("user", f"looked at as {us}, as whom the service works too")
    elif patient.becomes:
        yield ok("user", f"looked at as {us}; git and ssh are tried as {patient.user}, as whom the service works")
    else:
        remedy = f"sudo {shlex.join([sys.executable.removesuffix(Path(sys.executable).name) + 'hookdeploy', 'doctor'])}"
        named = f" --config {shlex.quote(str(patient.source))}" if patient.source else ""
        yield warning(
            "user", f"looked at as {us}, and the service works as {patient.user}: what {us} may is not what it may",
            remedy + named,
        )  # fmt: skip


def server(patient: Patient) -> Iterator[Finding]:
    """Whether it runs."""
    if patient.running:
        yield ok("server", f"hookdeploy {patient.running.version} runs (pid {patient.running.pid})")
    elif patient.silence:
        yield warning("server", patient.silence, f"sudo hookdeploy doctor{_named(patient)}")
    else:
        yield skipped("server", f"no server runs in {patient.state}" if patient.state else "no server is known")


def _named(patient: Patient) -> str:
    return f" --config {shlex.quote(str(patient.source))}" if patient.source else ""


def configuration(patient: Patient) -> Iterator[Finding]:
    """What ``hookdeploy check`` says, run as the service's user."""
    script = "from twisted_hook.cli import main; main()"
    file = (str(patient.source),) if patient.source else ()
    told = patient.ask(sys.executable, "-c", script, "check", "--json", *file, env=patient.environ)
    name = str(patient.source or "the environment")
    remedy = patient.as_user(f"hookdeploy check {shlex.quote(str(patient.source)) if patient.source else ''}".rstrip())
    try:
        said = json.loads(told.stdout)
    except ValueError:
        yield problem(
            "configuration", f"{name} could not be checked: {told.verdict}: {told.tail[-200:].strip()}", remedy
        )
        return
    faults = [": ".join(filter(None, (fault["path"], fault["message"]))) for fault in said["faults"]]
    if faults and patient.source is None and not Path(DEFAULT_NAME).exists():
        yield problem(
            "configuration", f"there is no {DEFAULT_NAME} here; {clean('; '.join(faults))}", "hookdeploy init"
        )
        return
    yield from (problem("configuration", clean(fault), f"edit {name}, then: {remedy}") for fault in faults)
    yield from (warning("configuration", clean(each), f"edit {name}, then: {remedy}") for each in said["warnings"])
    if not faults and not said["warnings"]:
        yield ok("configuration", f"{name} is good")


def python(_: Patient) -> Iterator[Finding]:
    """Whether this Python is one that is supported."""
    running = f"Python {platform.python_version()} at {sys.executable}"
    if sys.version_info < OLDEST_PYTHON:
        yield problem("python", running, "install Python 3.11 or newer, and hookdeploy into an environment of it")
    else:
        yield ok("python", running)


# --- permissions


def permissions(patient: Patient) -> Iterator[Finding]:
    """Who else may read what is secret, or write what we obey."""
    wanted = [place for place in _places(patient) if os.path.lexists(place[0])]
    found = [finding for place in wanted for finding in judge_place(*place, patient.owner)]
    yield from found
    if not found:
        yield ok("permissions", f"{len(wanted)} files and directories are for {patient.user} alone")


def _places(patient: Patient) -> Iterator[tuple[Path, int]]:
    """What there is, and the bits that it must not have."""
    if patient.state is not None:
        yield patient.state, 0o777 & ~PASSABLE
        yield patient.state / "token", 0o077
        yield patient.state / "api.sock", 0o077
    if patient.source is not None:
        yield patient.source, 0o022
        yield patient.source.parent, 0o022
    for hook in patient.config.hooks if patient.config else ():
        for source in (*hook.secrets, *((hook.token,) if hook.token else ())):
            if source.file is not None:
                yield source.file, 0o077
    for app in patient.config.apps.values() if patient.config else ():
        if app.deploy_key is not None:
            yield app.deploy_key, 0o077
        if app.env_file is not None:
            yield app.env_file, 0o022


def judge_place(path: Path, forbidden: int, owner: Account | None) -> Iterator[Finding]:
    """What is wrong with the mode or the owner of one file or directory; nothing if it is not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        yield skipped("permissions", f"{path}: {error.strerror}")
        return
    mode, uid = stat.S_IMODE(status.st_mode), owner.uid if owner else os.geteuid()
    if mode & forbidden and not (stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX):
        letters = {0o022: "go-w"}.get(forbidden, "700" if stat.S_ISDIR(status.st_mode) else "600")
        does = "change" if forbidden == 0o022 else "read"
        yield problem(
            "permissions", f"others can {does} {path} (mode {mode:04o})", f"chmod {letters} {shlex.quote(str(path))}"
        )
    if status.st_uid not in {uid, 0}:
        who = owner.name if owner else name_of(uid)
        yield problem(
            "permissions", f"{path} belongs to {name_of(status.st_uid)}", f"sudo chown {who} {shlex.quote(str(path))}"
        )


# --- the disk


def disk(patient: Patient) -> Iterator[Finding]:
    """Whether there is room for the next release."""
    if patient.state is None:
        yield skipped("disk", "no state directory is known")
        return
    place = next(path for path in (patient.state, *patient.state.absolute().parents) if path.exists())
    usage, inodes = shutil.disk_usage(place), os.statvfs(place)
    min_free = patient.config.server.min_free if patient.config else None
    yield judge_disk(
        place, usage.free, least_free(min_free, usage.total), inodes.f_favail, inodes.f_files
    )  # some file systems have as many files as fit, and tell 0


def judge_disk(place: Path, free: int, least: int, files_free: int, files: int) -> Finding:
    """``files`` is 0 where a file system has no limit of its own."""
    shown = f"{free // 1024**2} MiB are free at {place}"
    look = f"sudo du -xh -d 3 {shlex.quote(str(place))} | sort -h | tail; then lower keep, or make room"
    if free < least:
        return problem("disk", f"{shown}, and no deployment begins below {least // 1024**2} MiB", look)
    if files and files_free < 10_000:
        severe = problem if files_free < 1_000 else warning
        return severe(
            "disk", f"only {files_free} more files can be made at {place}", f"df -i {shlex.quote(str(place))}"
        )
    if free < 2 * least:
        return warning("disk", f"{shown}, and no deployment begins below {least // 1024**2} MiB", look)
    return ok("disk", shown)


# --- the clock


def clock(patient: Patient) -> Iterator[Finding]:
    """How far our clock is from the forge's, else whether somebody sets it."""
    where = _who_tells_the_time(patient.config) if patient.config else None
    if where is not None:
        try:
            began = time.time()
            answer = httpx.head(where, timeout=10.0, trust_env=False)
            told = parsedate_to_datetime(answer.headers["date"]).timestamp()
            yield judge_clock((began + time.time()) / 2 - told, where)
            return
        except (httpx.HTTPError, KeyError, ValueError, httpx.InvalidURL):
            pass
    said = patient.ask("timedatectl", "show", "--property=NTPSynchronized", "--value")
    yield judge_synchronised(said.stdout.decode("utf-8", "replace").strip() if said.ok else "")


def _who_tells_the_time(config: Config) -> str | None:
    for hook in config.hooks:
        if hook.api:
            return hook.api
    for app in config.apps.values():
        remote = Remote(app, app.repository or "")
        if remote.host in GITHUB_HOSTS:
            return api_of(remote.host)
        if remote.url.startswith("https://"):
            return f"https://{remote.url.removeprefix('https://').partition('/')[0]}"
    return None


def judge_clock(ahead: float, where: str) -> Finding:
    """``ahead`` is by how many seconds ours is before the other."""
    words = f"the clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of {where}"
    if abs(ahead) >= TOLERANCE:
        return problem("clock", f"{words}; signed deliveries may be off by 5 minutes", "sudo timedatectl set-ntp true")
    if abs(ahead) >= _OFF:
        return warning("clock", words, "sudo timedatectl set-ntp true")
    return ok("clock", f"as {where} has it, within {max(2, round(abs(ahead)))} s")


def judge_synchronised(said: str) -> Finding:
    """What ``timedatectl`` says; empty where it says nothing."""
    if said == "yes":
        return ok("clock", "systemd says that it is synchronised")
    if said == "no":
        return warning("clock", "nothing sets it, as far as systemd knows", "sudo timedatectl set-ntp true")
    return skipped("clock", "no other clock could be asked", "date; and compare it with https://time.gov")
