"""The servers that run are known by what is on disk, and nobody else is ever taken for one of them."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from twisted_hook import serverrecords
from twisted_hook.leftovers import start_time
from twisted_hook.model import Commit, Environment, Launch, Tree
from twisted_hook.serverrecords import Record

LAUNCH = Launch(
    Tree(Path("/srv/blog/releases/1"), Commit("0" * 40, "A change", "Ada"), "1"),
    Environment(Path("/usr/bin/python3"), directory=Path("/srv/blog/env"), gunicorn="27.0.1"),
    {"PATH": "/usr/bin", "SECRET": "swordfish"},
)


class RecordTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)

    def process(self, *, with_gate: bytes | None = None) -> subprocess.Popen[bytes]:
        """A process that does nothing; perhaps with a gate into which this was written."""
        code, descriptors = "import time; time.sleep(1000)", ()
        if with_gate is not None:
            gate = os.memfd_create("gate")
            self.addCleanup(os.close, gate)
            os.write(gate, with_gate)
            code = f"import os; os.dup2({gate}, {serverrecords.GATE}); print(flush=True); {code}"
            descriptors = (gate,)  # type: ignore[assignment]
        made = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=descriptors)
        self.addCleanup(made.communicate)
        self.addCleanup(made.kill)
        if with_gate is not None and made.stdout is not None:
            made.stdout.readline()
        return made

    def record(self, pid: int) -> Record:
        started = start_time(pid)
        assert started is not None
        return Record(pid, started, ("gunicorn", "wsgi:application"), "127.0.0.1:8000", LAUNCH)

    def test_what_is_written_is_read_as_it_was(self) -> None:
        for draining in (False, True):
            record = dataclasses.replace(self.record(os.getpid()), draining=draining)
            serverrecords.write(self.directory, record)
            self.assertEqual(serverrecords.alive(self.directory), [record])

    def test_a_forgotten_server_is_not_found(self) -> None:
        serverrecords.write(self.directory, self.record(os.getpid()))
        serverrecords.forget(self.directory, os.getpid())
        serverrecords.forget(self.directory, os.getpid())
        self.assertEqual(serverrecords.alive(self.directory), [])
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_server_that_has_gone_is_forgotten(self) -> None:
        process = self.process()
        serverrecords.write(self.directory, self.record(process.pid))
        process.kill()
        process.wait()
        self.assertEqual(serverrecords.alive(self.directory), [])
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_process_that_started_at_another_time_is_a_stranger(self) -> None:
        record = self.record(os.getpid())
        serverrecords.write(self.directory, dataclasses.replace(record, started=record.started - 1))
        self.assertEqual(serverrecords.alive(self.directory), [])
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_record_that_is_cut_off_anywhere_is_forgotten(self) -> None:
        record = self.record(os.getpid())
        serverrecords.write(self.directory, record)
        [path] = self.directory.iterdir()
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            self.assertEqual(serverrecords.alive(self.directory), [], length)
            self.assertFalse(path.exists(), length)

    def test_a_record_that_was_never_finished_is_nobodys(self) -> None:
        (self.directory / f"{os.getpid()}.new").write_bytes(b"{")
        self.assertEqual(serverrecords.alive(self.directory), [])
        record = self.record(os.getpid())
        serverrecords.write(self.directory, record)
        self.assertEqual(serverrecords.alive(self.directory), [record])

    def test_a_record_is_for_its_owner_alone(self) -> None:
        """It holds the app's environment, secrets and all."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        serverrecords.write(self.directory, self.record(os.getpid()))
        serverrecords.write(self.directory, self.record(os.getpid()))
        [path] = self.directory.iterdir()
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        self.assertIn(b"swordfish", path.read_bytes())

    def test_the_oldest_server_comes_first(self) -> None:
        processes = []
        for _ in range(3):
            processes.append(self.process())
            started = start_time(processes[-1].pid)
            while start_time_of_a_new_process() == started:  # the clock of the kernel must have ticked
                pass
        for process in (processes[1], processes[2], processes[0]):
            serverrecords.write(self.directory, self.record(process.pid))
        found = [record.pid for record in serverrecords.alive(self.directory)]
        self.assertEqual(found, [process.pid for process in processes])

    def test_those_that_run_are_asked_to_end_and_strangers_are_not(self) -> None:
        ours, stranger = self.process(), self.process()
        serverrecords.write(self.directory, self.record(ours.pid))
        other = self.record(stranger.pid)
        serverrecords.write(self.directory, dataclasses.replace(other, started=other.started - 1))
        serverrecords.end_all(self.directory)
        self.assertEqual(ours.wait(10), -signal.SIGTERM)
        self.assertIsNone(stranger.poll())
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_the_gate_is_open_once_something_is_written_into_it(self) -> None:
        self.assertFalse(serverrecords.gate_is_open(self.process(with_gate=b"").pid))
        self.assertTrue(serverrecords.gate_is_open(self.process(with_gate=b"open").pid))

    def test_a_stranger_has_no_open_gate(self) -> None:
        process = self.process()
        self.assertFalse(serverrecords.gate_is_open(process.pid))
        process.kill()
        self.assertFalse(serverrecords.gate_is_open(process.pid))
        process.wait()
        self.assertFalse(serverrecords.gate_is_open(process.pid))


def start_time_of_a_new_process() -> int:
    """In ticks since boot, as the kernel counts them."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
