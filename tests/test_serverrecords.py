"""The servers that run are known by what is on disk, and nobody else is ever taken for one of them."""

from __future__ import annotations

import dataclasses
import json
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
from twisted_hook.serverrecords import Record, State

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
            gate = os.memfd_create(serverrecords.GATE_NAME)
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
        for state in State:
            record = dataclasses.replace(self.record(os.getpid()), state=state)
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

    def test_what_is_no_record_and_cannot_be_removed_hides_no_server(self) -> None:
        (self.directory / "1.json").mkdir()
        serverrecords.write(self.directory, self.record(os.getpid()))
        self.assertEqual(serverrecords.alive(self.directory), [self.record(os.getpid())])

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
        self.assertEqual(ours.wait(60), -signal.SIGTERM)
        self.assertIsNone(stranger.poll())
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_one_that_does_not_end_when_it_is_asked_is_killed_with_its_family(self) -> None:
        """It has the socket on which hookdeploy wants to listen, and nobody would ever find it again."""
        deaf = subprocess.Popen(
            ["sh", "-c", 'trap "" TERM; echo deaf; while :; do sleep 0.05; done'],
            start_new_session=True,
            stdout=subprocess.PIPE,
        )
        self.addCleanup(deaf.kill)
        assert deaf.stdout is not None
        self.addCleanup(deaf.stdout.close)
        deaf.stdout.readline()
        serverrecords.write(self.directory, self.record(deaf.pid))
        serverrecords.end_all(self.directory, patience=0.1)
        self.assertEqual(deaf.wait(60), -signal.SIGKILL)

    def test_the_gate_is_shut_until_something_is_written_into_it(self) -> None:
        self.assertTrue(serverrecords.gate_is_shut(self.process(with_gate=b"").pid))
        self.assertFalse(serverrecords.gate_is_shut(self.process(with_gate=b"open").pid))

    def test_a_server_without_a_gate_may_hold_requests(self) -> None:
        process = self.process()
        self.assertFalse(serverrecords.gate_is_shut(process.pid))
        process.kill()
        self.assertFalse(serverrecords.gate_is_shut(process.pid))
        process.wait()
        self.assertFalse(serverrecords.gate_is_shut(process.pid))

    def test_a_record_of_an_earlier_hookdeploy_is_of_a_server_that_serves(self) -> None:
        serverrecords.write(self.directory, self.record(os.getpid()))
        [path] = self.directory.iterdir()
        old = json.loads(path.read_bytes())
        del old["state"]
        path.write_text(json.dumps({**old, "draining": False}))
        [record] = serverrecords.alive(self.directory)
        self.assertIs(record.state, State.SERVING)


class Choosing(SynchronousTestCase):
    """Which of those that an earlier hookdeploy has left behind is to serve."""

    def chosen(self, *states: State) -> int | None:
        """The place of the chosen one, the oldest first."""
        records = [Record(pid, pid, ("gunicorn",), "127.0.0.1:8000", LAUNCH, state) for pid, state in enumerate(states)]
        chosen = serverrecords.to_serve(records)
        return None if chosen is None else chosen.pid

    def test_of_those_that_serve_the_newest(self) -> None:
        self.assertEqual(self.chosen(State.SERVING, State.SERVING), 1)
        self.assertEqual(self.chosen(State.DRAINING, State.SERVING, State.CANDIDATE), 1)

    def test_one_on_probation_has_not_been_chosen(self) -> None:
        """P83."""
        self.assertEqual(self.chosen(State.SERVING, State.PROBATION), 0)
        self.assertEqual(self.chosen(State.SERVING, State.CANDIDATE), 0)

    def test_one_on_probation_is_better_than_none(self) -> None:
        self.assertEqual(self.chosen(State.PROBATION), 0)
        self.assertEqual(self.chosen(State.DRAINING, State.CANDIDATE, State.PROBATION), 2)

    def test_one_that_drains_is_never_chosen(self) -> None:
        self.assertIsNone(self.chosen(State.DRAINING))
        self.assertIsNone(self.chosen())


def start_time_of_a_new_process() -> int:
    """In ticks since boot, as the kernel counts them."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
