"""Whether anything that arrives at the public door can stop it, fool it or fill it: mutated requests, by the 100,000.

python -m benchmarks.fuzz --requests 200000 --installed 20000

Most of them go through the site, the intake, the forges and the journal in this process, over a transport in memory,
with every law of ``tests/fuzzing.py`` judged after each. Then some go over TCP to the installed program.
"""

from __future__ import annotations

import concurrent.futures
import errno
import gc
import os
import re
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.json import decode
from twisted.logger import globalLogBeginner

from benchmarks import rig
from tests.fuzzing import CONTINUE, Door, Malformed, answers, opened, shrunk
from tests.mutation import Attempt, End, attempt
from tests.payloads import SECRET
from tests.seeds import NOW, SIGNING, Seed, corpus

MOST_GROWTH = 32.0
"""MiB: the goal."""
WARM_UP = 10_000
"""Requests after which the memory is measured for the first time: all is imported, and every cache is full."""
SENDERS = 8

SIGNED = ("standard", "gitlab-signed")
"""The hooks whose secret is a signing one."""
PLAIN = ("github", "gitlab", "gitea", "forgejo", "bitbucket", "bitbucket-server")


def resident(pid: int) -> float:
    """The resident memory of a process, in MiB, as proc_pid_status(5) tells it."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    if found is None:
        raise rig.NotMeasured("no VmRSS")
    return int(found[1]) / 1024


def say(statuses: Mapping[int, int], requests: int, seconds: float) -> None:
    told = ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items()))
    print(f"  answers              {told}")
    print(f"  5xx                  {sum(count for status, count in statuses.items() if status >= 500)}")
    print(f"  wall time            {seconds:.0f} s, {requests / seconds:.0f} requests/s")


# --- in memory


def in_memory(directory: Path, seed: int, requests: int) -> None:
    seeds = corpus()
    with opened(directory) as door:
        converse(door, seeds, directory, seed, range(min(WARM_UP, requests)))
        gc.collect()
        before, started = resident(os.getpid()), time.monotonic()
        numbers = range(min(WARM_UP, requests), requests)
        converse(door, seeds, directory, seed, numbers)
        seconds = time.monotonic() - started
        gc.collect()
        growth = resident(os.getpid()) - before
        print(f"{requests} conversations in memory, seed {seed}")
        say(door.statuses, len(numbers) or 1, seconds)
        print("  tracebacks           0, and no law broken")
        print(f"  202 / in the journal {door.statuses[202]} / {door.recorded}")
        print(f"  new / rows on disk   {door.made} / {door.count_rows()}")
        print(f"  memory growth        {growth:.1f} MiB from {before:.1f} MiB (goal < {MOST_GROWTH:g})\n", flush=True)
        if door.made != door.count_rows():
            raise rig.NotMeasured("rows on disk are not what was acknowledged")


def converse(door: Door, seeds: list[Seed], directory: Path, seed: int, numbers: range) -> None:
    for number in numbers:
        one = attempt(seeds, seed, number, NOW)
        if problems := door.serve(one):
            raise rig.NotMeasured(shrunk(directory, one, problems))


# --- the installed program


@dataclass
class Heard:
    """What the senders were told."""

    statuses: Counter[int] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    accepted: set[str] = field(default_factory=set)
    """The ids of the deliveries that were accepted."""
    silent: int = 0
    reset: int = 0
    malformed: list[str] = field(default_factory=list)


def over_tcp(directory: Path, seed: int, requests: int) -> None:
    project = rig.Project.with_app(directory, "web")
    port = rig.free_port()
    config = configure(directory, project, port)
    seeds = corpus()
    heard = Heard()
    with rig.hookdeploy(config, port) as server:
        for name in (*PLAIN, *SIGNED):  # what is measured is the door
            server.act(f"/apps/{name}/pause")
        send_all(port, seeds, seed, range(min(requests // 4, WARM_UP)), heard)
        before, started = resident(server.process.pid), time.monotonic()
        numbers = range(min(requests // 4, WARM_UP), requests)
        send_all(port, seeds, seed, numbers, heard)
        seconds, growth = time.monotonic() - started, resident(server.process.pid) - before
        if rig.page(port, "/healthz") != "ok":
            raise rig.NotMeasured("no answer after all that")
        with closing(sqlite3.connect(directory / "state" / "journal.sqlite3")) as journal:
            rows = dict(journal.execute("SELECT verdict, count(*) FROM deliveries GROUP BY verdict"))
    log = (directory / "hookdeploy.log").read_text("utf-8", "replace")
    print(f"{requests} conversations over TCP with the installed program, {SENDERS} at a time, seed {seed}")
    say(heard.statuses, len(numbers) or 1, seconds)
    print(f"  tracebacks           {log.count('Traceback')}")
    print(f"  no answer / reset    {heard.silent} / {heard.reset}; malformed answers: {len(heard.malformed)}")
    print(f"  202                  {dict(heard.verdicts)}")
    print(f"  rows                 {rows}; accepted ids that were told: {len(heard.accepted)}")
    print(f"  memory growth        {growth:.1f} MiB from {before:.1f} MiB (goal < {MOST_GROWTH:g})", flush=True)
    if heard.malformed or rows.get("accepted", 0) < len(heard.accepted):
        raise rig.NotMeasured(f"a law is broken: {heard.malformed[:3]}")


def configure(directory: Path, project: rig.Project, port: int) -> Path:
    """Write a hookdeploy.toml with a hook of each forge, and an app for each; gives its path."""
    for name, secret in {"hook.secret": SECRET, "signing.secret": SIGNING}.items():
        (directory / name).write_bytes(secret)
        (directory / name).chmod(0o600)
    tables = ['state = "state"', f'[server]\nlisten = ["tcp:{port}:interface=127.0.0.1"]']
    for name in (*PLAIN, *SIGNED):
        forge, secret_file = name.removesuffix("-signed"), "signing.secret" if name in SIGNED else "hook.secret"
        tables += [
            f'[hooks.{name}]\nforge = "{forge}"\nsecrets = [{{ file = "{secret_file}" }}]',
            f'[apps.{name}]\nhook = "{name}"\nrepository = "{project.origin}"\nnames = ["acme/web"]\nbranch = "main"',
            f'wsgi = "wsgi:application"\nbind = "127.0.0.1:{rig.free_port()}"\npoll = "0"',
        ]
    file = directory / "hookdeploy.toml"
    file.write_text("\n\n".join(tables) + "\n")
    return file


def send_all(port: int, seeds: list[Seed], seed: int, numbers: range, heard: Heard) -> None:
    now = time.time()

    def converse(number: int) -> tuple[Attempt, bytes | None]:
        one = attempt(seeds, seed, number, now)
        return one, send(port, one)

    with concurrent.futures.ThreadPoolExecutor(SENDERS) as senders:
        for start in range(numbers.start, numbers.stop, 1000):
            portion = range(start, min(start + 1000, numbers.stop))
            for one, said in senders.map(converse, portion):
                hear(one, said, heard)


def send(port: int, one: Attempt) -> bytes | None:
    """What is said to these bytes, until the connection ends; None if nobody was there any more to hear it.

    Each has an address of its own, as senders have whom nobody limits together.
    """
    said = b""
    with socket.socket() as wire:
        wire.settimeout(rig.PATIENCE)
        wire.bind((f"127.1.{one.number // 250 % 250}.{one.number % 250 + 1}", 0))
        try:
            wire.connect(("127.0.0.1", port))
            for piece in one.pieces:
                wire.sendall(piece)
            if one.end in (End.LEAVES, End.BREAKS_OFF):
                return b""
            wire.shutdown(socket.SHUT_WR)
            while data := wire.recv(65_536):
                said += data
        except (ConnectionResetError, BrokenPipeError):
            return said or None
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
    return said


def hear(one: Attempt, said: bytes | None, heard: Heard) -> None:
    heard.reset += said is None
    heard.silent += said == b""
    try:
        found = answers(said or b"", bodiless=b"HEAD" in one.data)
    except Malformed as malformed:
        heard.malformed.append(f"{one.seed}/{one.number}: {malformed}")
        return
    heard.statuses.update(status for status, _ in found if status != CONTINUE)
    for told in (decode(body) for status, body in found if status == 202):
        heard.verdicts[told["status"]] += 1
        if told["status"] == "accepted":
            heard.accepted.add(told["delivery"])


def main() -> None:
    parser = rig.arguments(__doc__)
    parser.add_argument("--requests", type=int, default=200_000, help="how many go over the transport in memory")
    parser.add_argument("--installed", type=int, default=20_000, help="how many go over TCP to the installed program")
    parser.add_argument("--seed", type=int, default=5, help="of all that is random")
    options = parser.parse_args()
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)  # else Twisted keeps the last 65,536 events
    with rig.workplace(options.state) as directory:
        if options.requests:
            in_memory(directory, options.seed, options.requests)
        if options.installed:
            over_tcp(directory, options.seed, options.installed)


if __name__ == "__main__":
    main()
