"""Who listens where hookdeploy and its apps are to listen: /proc/net/tcp and the processes that hold the sockets.

Connects to nothing and listens on nothing.
"""

from __future__ import annotations

import os
import shlex
import socket
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from twisted_hook import addresses, serverrecords
from twisted_hook.addresses import Address
from twisted_hook.cli.doctor.finding import Finding, ok, problem, skipped, warning
from twisted_hook.cli.doctor.patient import Patient
from twisted_hook.config import AppConfig
from twisted_hook.redaction import clean

_LISTENING = "0A"  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a listening socket."""

    pid: int
    words: str
    """Its command line."""
    ours: bool = False
    """The keeper of this state directory, or a server that an earlier run has left serving."""
    keeps: Path | None = None
    """The state directory of which it is the keeper."""


def doors(patient: Patient) -> Iterator[Finding]:
    """The public doors, and those of the dashboard."""
    config = patient.config
    server, dashboard = (config.server.listen, config.dashboard.listen) if config else ((), ())
    named = [*(("door", "server", each) for each in server), *(("dashboard", "dashboard", each) for each in dashboard)]
    for kind, table, endpoint in named:
        plain = endpoint.removeprefix("haproxy:")
        name = f"{kind} {endpoint}"
        if plain.startswith("systemd:"):
            yield skipped(name, "systemd listens there", "systemctl list-sockets")
        elif plain.startswith("unix:"):
            yield _unix(patient, name, Path(addresses.endpoint_arguments(plain)[1]["address"]))
        elif address := addresses.endpoint_address(endpoint):
            yield _tcp(patient, name, address, f"{table}.listen in the configuration")


def binds(patient: Patient, app: AppConfig) -> Iterator[Finding]:
    """Where an app's server listens."""
    name = f"bind of {app.name}"
    if not app.served:
        yield skipped(name, "it has no server")
    elif app.bind.startswith("unix:"):
        yield _unix(patient, name, Path(app.bind.removeprefix("unix:")))
    elif address := addresses.bound_address(app.bind):
        yield _tcp(patient, name, address, f'apps.{app.name}.bind = "127.0.0.1:8081" in the configuration')


def _tcp(patient: Patient, name: str, address: Address, elsewhere: str) -> Finding:
    sockets = [inode for other, inode in listening() if addresses.collide(address, other)]
    running = patient.running.pid if patient.running else None
    held_by = holders(sockets, patient.state)
    return judge(name, address[1], sockets, held_by, running=running, elsewhere=elsewhere, user=patient.user)


def judge(
    name: str,
    port: int,
    sockets: Sequence[int],
    held_by: Sequence[Holder],
    *,
    running: int | None,
    elsewhere: str,
    user: str,
) -> Finding:
    """``sockets`` listen there, ``held_by`` those processes that we may see; ``running`` is our own server."""
    if any(holder.pid == running for holder in held_by):
        return ok(name, f"hookdeploy listens (pid {running})")
    if held_by and all(holder.ours for holder in held_by):
        return ok(name, f"kept for hookdeploy by what an earlier run has left serving (pid {held_by[0].pid})")
    if not sockets:
        return _judge_free(name, port, running=running, user=user)
    if running and not held_by:
        return ok(name, "somebody listens; whose socket it is, only root may see")
    words = (
        _named(next(holder for holder in held_by if not holder.ours)) if held_by else "somebody that only root may see"
    )
    remedy = f"sudo ss -ltnp 'sport = :{port}'; end that, or take another: {elsewhere}"
    return problem(name, f"port {port} is taken by {words}", remedy)


def _judge_free(name: str, port: int, *, running: int | None, user: str) -> Finding:
    if running:
        return problem(name, f"hookdeploy runs, and nobody listens on port {port}", "journalctl -u hookdeploy -n 50")
    if 0 < port < _lowest_port() and user != "root":
        return warning(
            name,
            f"port {port} is free; only root may take it, or who has the capability",
            "sudo systemctl edit hookdeploy   # [Service] AmbientCapabilities=CAP_NET_BIND_SERVICE",
        )
    return ok(name, f"port {port} is free")


def _named(holder: Holder) -> str:
    if holder.keeps is not None:
        return clean(f"another hookdeploy: pid {holder.pid}, the keeper of {holder.keeps}")
    return f"pid {holder.pid}, {clean(holder.words)[:80]}"


def _lowest_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024


def _unix(patient: Patient, name: str, path: Path) -> Finding:
    try:
        is_socket = stat.S_ISSOCK(path.stat().st_mode)
    except FileNotFoundError:
        if patient.running:
            return problem(name, f"hookdeploy runs, and {path} is not there", "sudo systemctl restart hookdeploy")
        if not path.parent.is_dir():
            remedy = f"sudo install -d -o {shlex.quote(patient.user)} {shlex.quote(str(path.parent))}"
            return problem(name, f"{path.parent} does not exist", remedy)
        return ok(name, f"{path} is free")
    except OSError as error:
        return skipped(name, f"{path}: {error.strerror}")
    if is_socket:
        return ok(name, f"{path} is there")
    return problem(name, f"{path} is no socket", f"mv {shlex.quote(str(path))} {shlex.quote(f'{path}.old')}")


# --- the kernel's tables


def listening() -> Iterator[tuple[Address, int]]:
    """The addresses on which somebody listens, each with the inode of its socket (proc(5), /proc/net/tcp)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for words in map(str.split, lines):
            if words[3] == _LISTENING:
                host, _, port = words[1].partition(":")
                yield (_host(host), int(port, 16)), int(words[9])


def _host(shown: str) -> str:
    """The kernel shows words of 32 bits, each in the order of this machine; empty for all addresses."""
    packed = b"".join(socket.htonl(int(shown[at : at + 8], 16)).to_bytes(4, "big") for at in range(0, len(shown), 8))
    address = ip_address(packed)
    address = (address.ipv4_mapped if address.version == 6 else None) or address
    return "" if address.is_unspecified else str(address)


def holders(sockets: Sequence[int], state: Path | None) -> list[Holder]:
    """The processes that have these sockets, as far as we may see (proc_pid_fd(5)); ``state`` is our own."""
    wanted = {f"socket:[{inode}]" for inode in sockets}
    left = {record.pid for record in _left_serving(state)} if wanted else set()
    found = []
    for process in Path("/proc").glob("[0-9]*") if wanted else ():
        try:
            if any(str(fd.readlink()) in wanted for fd in (process / "fd").iterdir()):
                pid, argv = int(process.name), os.fsdecode((process / "cmdline").read_bytes()).rstrip("\0").split("\0")
                keeps = _kept_by(argv)
                ours = os.getsid(pid) in left if keeps is None else state is not None and keeps == state.resolve()
                found.append(Holder(pid, " ".join(argv).strip(), ours, keeps))
        except OSError:
            continue  # gone, or somebody else's
    return found


def _left_serving(state: Path | None) -> Iterator[serverrecords.Record]:
    """The servers of this state directory, each of which has a session for itself and its workers."""
    for path in state.glob("apps/*/servers/*.json") if state else ():
        if record := serverrecords.running(path):
            yield record


def _kept_by(argv: Sequence[str]) -> Path | None:
    """The state directory whose keeper was started in this way."""
    is_keeper = len(argv) > 1 and Path(argv[-2]).parts[-2:] == ("twisted_hook", "keeper.py")
    return Path(argv[-1]).parent.resolve() if is_keeper else None
