"""What a killed hookdeploy has left running is ended, and nothing else is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from tests.proctable import runs
from tests.waiting import until
from twisted_hook import leftovers

STUBBORN = (
    "import os, signal, sys, time; signal.signal(15, signal.SIG_IGN); {}print('ready', flush=True); time.sleep(99)"
)
"""A process that does not care for SIGTERM."""
WITH_A_CHILD = "child = os.fork() or time.sleep(99); open(sys.argv[1], 'w').write(str(child)); "


class LeftoversTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.patch(leftovers, "PATIENCE", 0.5)

    def start(self, *argv: str, ready: bool = False) -> subprocess.Popen[bytes]:
        """A process as hookdeploy starts it; with ``ready`` as soon as it says something."""
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        if ready:
            assert process.stdout is not None
            process.stdout.readline()
        return process

    def sleeper(self) -> subprocess.Popen[bytes]:
        process = self.start("sleep", "99")
        leftovers.record(self.record("sleeper"), process.pid)
        return process

    def stubborn(self, name: str = "stubborn", more: str = "", *arguments: str) -> subprocess.Popen[bytes]:
        process = self.start(sys.executable, "-c", STUBBORN.format(more), *arguments, ready=True)
        leftovers.record(self.record(name), process.pid)
        return process

    def record(self, name: str) -> Path:
        return self.directory / f"{name}.pid"

    @contextmanager
    def warned(self, *pids: int) -> Iterator[None]:
        """For each of these processes, and for no other, the log has a warning."""
        with capturedLogs() as events:
            yield
        self.assertEqual(sorted(event["pid"] for event in events), sorted(pids))

    def assert_gone(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        self.assertEqual(process.wait(60), -number)

    def test_a_recorded_command_is_ended_and_forgotten(self) -> None:
        server = self.sleeper()
        with self.warned(server.pid):
            leftovers.end_all(self.directory)
        self.assert_gone(server, signal.SIGTERM)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_command_may_clean_up_after_itself(self) -> None:
        self.patch(leftovers, "PATIENCE", 60.0)
        script = "import signal, time; signal.signal(15, lambda *_: (time.sleep(0.2), exit(7))); print(flush=True)"
        server = self.start(sys.executable, "-c", f"{script}; time.sleep(99)", ready=True)
        leftovers.record(self.record("server"), server.pid)
        leftovers.end_all(self.directory)
        self.assertEqual(server.wait(60), 7)

    def test_a_command_that_does_not_end_is_killed_with_its_children(self) -> None:
        note = self.directory / "worker"
        server = self.stubborn("server", WITH_A_CHILD, str(note))
        leftovers.end_all(self.directory)
        self.assert_gone(server, signal.SIGKILL)
        until(lambda: not runs(int(note.read_text())), "its end")

    def test_many_stubborn_commands_take_no_longer_than_one(self) -> None:
        servers = [self.stubborn(str(number)) for number in range(4)]
        waits, still_there = [], leftovers._still_there

        def waited(found: dict[int, int], patience: float) -> dict[int, int]:
            waits.append(len(found))
            return still_there(found, patience)

        self.patch(leftovers, "_still_there", waited)
        leftovers.end_all(self.directory)
        self.assertEqual(waits, [4, 4])  # once after they were asked, and once after they were killed
        for server in servers:
            self.assert_gone(server, signal.SIGKILL)

    def test_there_may_be_nothing_to_do(self) -> None:
        leftovers.end_all(self.directory / "none")

    def test_a_recorded_command_is_killed_with_its_family(self) -> None:
        note = self.directory / "child"
        command = self.stubborn("command", WITH_A_CHILD, str(note))
        with self.warned(command.pid):
            leftovers.end_all(self.directory)
        self.assert_gone(command, signal.SIGKILL)
        until(lambda: not runs(int(note.read_text())), "its end")
        self.assertFalse(self.record("command").exists())

    def test_a_command_is_recorded_while_it_runs(self) -> None:
        with leftovers.recorded(self.record("me"), os.getpid()):
            self.assertEqual(
                self.record("me").read_text().split(), [str(os.getpid()), str(leftovers.start_time(os.getpid()))]
            )
        self.assertFalse(self.record("me").exists())

    def test_a_command_that_cannot_be_recorded_runs_all_the_same(self) -> None:
        with leftovers.recorded(self.directory / "none" / "me.pid", os.getpid()):
            pass

    def test_a_command_that_has_ended_is_not_recorded(self) -> None:
        process = self.start("true")
        process.wait()
        leftovers.record(self.record("gone"), process.pid)
        self.assertFalse(self.record("gone").exists())

    # What is left alone

    def test_a_process_that_has_the_pid_of_a_server_by_now_is_left_alone(self) -> None:
        stranger = self.sleeper()
        self.record("sleeper").write_text(f"{stranger.pid} {(leftovers.start_time(stranger.pid) or 0) - 1}\n")
        with self.warned():
            leftovers.end_all(self.directory)
        self.assertIsNone(stranger.poll())
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_process_that_is_gone_is_no_trouble(self) -> None:
        server = self.sleeper()
        server.kill()
        server.wait()
        with self.warned():
            leftovers.end_all(self.directory)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_process_that_is_dead_but_not_reaped_is_no_trouble(self) -> None:
        server = self.sleeper()
        server.kill()
        until(lambda: not runs(server.pid), "its end")
        leftovers.end_all(self.directory)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_malformed_record_does_not_keep_the_others_from_being_ended(self) -> None:
        """One that was cut off by the same kill, or in which somebody has written."""
        server, me = self.sleeper(), os.getpid()
        for number, text in enumerate(
            (b"", b"\n", b"x", b"%d" % me, b"%d 1 2" % me, b"-1 5", b"0 0", b"1", b"\xff\xfe", b"9" * 30 + b" 1", b"\0")
        ):
            self.record(str(number)).write_bytes(text)
        with self.warned(server.pid):
            leftovers.end_all(self.directory)
        self.assert_gone(server, signal.SIGTERM)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_a_record_that_cannot_be_read_does_not_crash_the_start(self) -> None:
        self.record("directory").mkdir()
        leftovers.end_all(self.directory)

    # Times

    def test_a_process_has_one_start_time_whatever_its_name(self) -> None:
        """Names may contain parentheses and spaces, and bytes that are no text."""
        for name in (b"a) S 1 (b", b"caf\xe9"):
            program = self.directory / os.fsdecode(name)
            shutil.copy(shutil.which("sleep") or "", program)
            process = self.start(str(program), "99")
            first = leftovers.start_time(process.pid)
            self.assertIsInstance(first, int)
            self.assertEqual(leftovers.start_time(process.pid), first)
            self.assertGreaterEqual(first or 0, leftovers.start_time(os.getpid()) or 0)

    def test_a_process_that_is_not_there_has_none(self) -> None:
        self.assertIsNone(leftovers.start_time(2**22 + 1))
        self.assertIsNone(leftovers.start_time(-1))
