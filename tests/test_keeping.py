"""The keeper holds listening sockets while nobody else does: a program of its own, started, killed and ended here."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.installed import free_port, is_listened_on
from tests.proctable import told
from tests.waiting import PATIENCE, until
from twisted_hook import sockets
from twisted_hook.keeping import FIRST_PAUSE, LOOK, PROGRAM, STEADY, Keeper, NoKeeper
from twisted_hook.keeping import PATIENCE as KEEPER_PATIENCE
from twisted_hook.process import Reactor

PYTHON = sys.executable


def keepers(path: Path) -> list[int]:
    """The keepers that run for this path."""
    return told(PROGRAM, path)


def killed_as_soon_as_it_has_started_one(path: Path, *, late: bool = False) -> int:
    """What a process leaves that is killed as its keeper begins to run; gives the pid. A late one is stopped there."""
    begin = (sys.executable, "-c", STARTER, str(path), *(["late"] if late else []))
    return int(subprocess.run(begin, stdout=subprocess.PIPE, text=True, check=False).stdout)


STARTER = """
import os, signal, subprocess, sys
from pathlib import Path
from twisted_hook import keeping

class Last(subprocess.Popen):
    def __init__(self, *arguments, **given):
        super().__init__(*arguments, **given)
        if "late" in sys.argv:
            os.kill(self.pid, signal.SIGSTOP)
        print(self.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

keeping.subprocess.Popen = Last
keeping.Keeper(Path(sys.argv[1])).reach()
"""


class KeeperFixture(SynchronousTestCase):
    """A directory, and a keeper in it that ends with the test."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.path = self.directory / "keeper.sock"

    def reached(self, path: Path | None = None) -> Keeper:
        """A client that has reached its keeper, which is ended with the test."""
        path = path or self.path
        keeper = Keeper(path)
        self.addCleanup(self.assert_ends, path)
        self.addCleanup(keeper.end)
        keeper.reach()
        return keeper

    def assert_ends(self, path: Path) -> None:
        until(lambda: not keepers(path), "the end of the keeper")

    def the_one(self, path: Path | None = None) -> int:
        [pid] = keepers(path or self.path)
        return pid

    def leave(self, keeper: Keeper) -> None:
        """What the death of hookdeploy looks like to the keeper: its client has gone without a word."""
        keeper._connection.close()  # type: ignore[union-attr]
        for descriptor in keeper._held.values():
            os.close(descriptor)
        keeper._held.clear()
        keeper._connection = None

    def listener(self) -> socket.socket:
        listener = sockets.listen(f"127.0.0.1:{free_port()}")  # which no client is given once it is closed
        self.addCleanup(listener.close)
        return listener

    def taken(self, keeper: Keeper, name: str) -> socket.socket:
        listener = keeper.take(name)
        assert listener is not None
        self.addCleanup(listener.close)
        return listener

    def connected(self, address: tuple[str, int]) -> socket.socket:
        client = socket.create_connection(address, PATIENCE)
        self.addCleanup(client.close)
        return client


class KeeperTests(KeeperFixture):
    # holding and taking

    def test_who_connects_while_nobody_accepts_is_accepted_through_the_taken_socket(self) -> None:
        first = self.reached()
        listener = self.listener()
        address = listener.getsockname()
        first.hold("door", listener)
        listener.close()
        self.leave(first)
        client = self.connected(address)
        client.sendall(b"hello")
        second = self.taken(self.reached(), "door")
        self.assertEqual(second.getsockname(), address)
        accepted, _ = second.accept()
        self.addCleanup(accepted.close)
        accepted.settimeout(PATIENCE)
        self.assertEqual(accepted.recv(5), b"hello")

    def test_a_taken_socket_is_inherited_by_nobody(self) -> None:
        """At an upgrade hookdeploy executes itself again, and would hold what it has forgotten."""
        keeper = self.reached()
        with self.listener() as listener:
            keeper.hold("door", listener)
        self.assertFalse(self.taken(keeper, "door").get_inheritable())

    def test_nothing_is_held_under_a_name_that_was_never_given(self) -> None:
        self.assertIsNone(self.reached().take("door"))

    def test_a_second_socket_takes_the_place_of_the_first_under_its_name(self) -> None:
        keeper = self.reached()
        first, second = self.listener(), self.listener()
        old, new = first.getsockname(), second.getsockname()
        keeper.hold("door", first)
        keeper.hold("door", second)
        first.close()
        self.assertEqual(self.taken(keeper, "door").getsockname(), new)
        self.assertRaises(ConnectionRefusedError, socket.create_connection, old)

    def test_the_name_of_a_unix_socket_is_held_with_it(self) -> None:
        keeper = self.reached()
        path = self.directory / "app.sock"
        listener = sockets.listen(f"unix:{path}")
        keeper.hold("app", listener)
        listener.close()
        copy = self.taken(keeper, "app")
        self.assertEqual(copy.family, socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            copy.accept()[0].close()

    def test_a_held_socket_never_blocks(self) -> None:
        """All who hold the socket share this: an accept that blocks freezes the door, or a worker."""
        keeper = self.reached()
        listener = self.listener()
        keeper.hold("door", listener)
        self.assertFalse(os.get_blocking(listener.fileno()))
        copy = self.taken(keeper, "door")
        for each in (listener, copy):
            self.assertFalse(os.get_blocking(each.fileno()))
        self.assertRaises(BlockingIOError, copy.accept)
        keeper.hold("door", copy)
        os.kill(self.the_one(), signal.SIGKILL)
        again = self.taken(keeper, "door")
        for each in (listener, copy, again):
            self.assertFalse(os.get_blocking(each.fileno()))

    def test_every_socket_but_those_to_keep_is_closed(self) -> None:
        keeper = self.reached()
        addresses = {}
        for name in ("door", "blog", "shop"):
            listener = self.listener()
            addresses[name] = listener.getsockname()
            keeper.hold(name, listener)
            listener.close()
        keeper.keep_only({"blog", "never held"})
        self.connected(addresses["blog"])
        for name in ("door", "shop"):
            self.assertRaises(ConnectionRefusedError, socket.create_connection, addresses[name])
            self.assertIsNone(keeper.take(name))

    def test_what_is_not_to_be_kept_is_not_given_to_a_new_keeper(self) -> None:
        keeper = self.reached()
        keeper.hold("door", self.listener())
        keeper.keep_only(set())
        os.kill(self.the_one(), signal.SIGKILL)
        self.assertIsNone(keeper.take("door"))

    # the keeper itself

    def test_a_killed_keeper_is_replaced_and_given_everything_again(self) -> None:
        keeper = self.reached()
        addresses = {}
        for name in ("door", "blog"):
            listener = self.listener()
            addresses[name] = listener.getsockname()
            keeper.hold(name, listener)
            listener.close()
        old = self.the_one()
        os.kill(old, signal.SIGKILL)
        until(lambda: old not in keepers(self.path), "the end of the killed keeper")
        self.assertIsNone(keeper.take("a name"))
        self.assertNotEqual(self.the_one(), old)
        self.leave(keeper)
        after = self.reached()
        for name, address in addresses.items():
            self.assertEqual(self.taken(after, name).getsockname(), address)

    def test_a_second_client_reaches_the_same_keeper(self) -> None:
        first = self.reached()
        first.hold("door", self.listener())
        pid = self.the_one()
        self.leave(first)
        self.reached()
        self.assertEqual(self.the_one(), pid)

    def test_the_end_closes_what_is_held_and_removes_the_socket(self) -> None:
        keeper = self.reached()
        listener = self.listener()
        address = listener.getsockname()
        keeper.hold("door", listener)
        listener.close()
        keeper.end()
        until(lambda: not keepers(self.path), "the end of the keeper")
        self.assertFalse(self.path.exists())
        # A process that ends has no command line any more while its sockets are still to be closed.
        until(lambda: not is_listened_on(address[1]), "the end of the socket")

    def test_a_keeper_that_was_killed_can_be_told_to_end(self) -> None:
        keeper = self.reached()
        os.kill(self.the_one(), signal.SIGKILL)
        until(lambda: not keepers(self.path), "the end of the killed keeper")
        keeper.end()
        self.assertEqual(keepers(self.path), [])

    def test_it_ends_by_itself_when_its_client_leaves_and_it_holds_nothing(self) -> None:
        keeper = self.reached()
        keeper.hold("door", self.listener())
        keeper.keep_only(set())
        self.leave(keeper)
        until(lambda: not keepers(self.path), "the end of the keeper")
        self.assertFalse(self.path.exists())

    def test_it_lives_on_when_its_client_leaves_and_it_holds_something(self) -> None:
        keeper = self.reached()
        keeper.hold("door", self.listener())
        pid = self.the_one()
        for _ in range(3):
            self.leave(keeper)
            keeper = self.reached()
            self.assertIsNotNone(self.taken(keeper, "door"))
            self.assertEqual(self.the_one(), pid)

    def test_a_client_that_talks_nonsense_is_hung_up_on_and_nothing_is_lost(self) -> None:
        keeper = self.reached()
        keeper.hold("door", self.listener())
        pid = self.the_one()
        for nonsense in (b"not JSON", b"{}", b"[]", b'"text"', b'{"do": "hold", "names": ["door"]}', b'{"do": "take"}'):
            self.leave(keeper)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
                stranger.settimeout(PATIENCE)
                stranger.connect(str(self.path))
                stranger.sendall(nonsense)
                self.assertEqual(stranger.recv(1), b"", nonsense)
            keeper = self.reached()
            self.assertEqual(keepers(self.path), [pid], nonsense)
            self.assertIsNotNone(self.taken(keeper, "door"), nonsense)

    def test_a_socket_that_a_killed_keeper_has_left_is_in_nobodys_way(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as old:
            old.bind(str(self.path))
        self.reached()
        self.the_one()

    def test_one_that_dies_while_it_is_called_is_not_relied_upon(self) -> None:
        """A kernel takes calls for a process that it has begun to end."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dying:
            dying.bind(str(self.path))
            dying.listen()

            def die() -> None:
                dying.accept()[0].close()

            death = threading.Thread(target=die)
            death.start()
            self.reached()
            death.join(PATIENCE)
        self.the_one()

    def test_a_call_during_which_two_keepers_die_says_that_there_is_none(self) -> None:
        keeper = self.reached()
        start = keeper._start

        def start_one_that_dies() -> None:
            start()
            os.kill(self.the_one(), signal.SIGKILL)
            until(lambda: not keepers(self.path), "the end of the keeper")

        self.patch(keeper, "_start", start_one_that_dies)
        os.kill(self.the_one(), signal.SIGKILL)
        until(lambda: not keepers(self.path), "the end of the keeper")
        self.assertRaises(NoKeeper, keeper.hold, "door", self.listener())

    def test_its_socket_is_for_its_owner_alone(self) -> None:
        self.reached()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_the_state_directory_may_have_a_long_name(self) -> None:
        """A unix socket's address may not: 107 bytes."""
        path = self.directory / ("x" * 120) / "keeper.sock"
        path.parent.mkdir()
        keeper = self.reached(path)
        listener = self.listener()
        keeper.hold("door", listener)
        self.leave(keeper)
        copy = self.taken(self.reached(path), "door")
        self.assertEqual(copy.getsockname(), listener.getsockname())
        self.the_one(path)

    def test_one_whose_starter_dies_before_it_runs_ends_by_itself(self) -> None:
        """A stop in the moment of a start: nobody was left to tell the keeper that it is not needed."""
        killed_as_soon_as_it_has_started_one(self.path)
        # In its first moment a process has no command line yet; the socket was there before it.
        until(lambda: not (self.path.exists() or keepers(self.path)), "the end of the keeper and of its socket")

    def test_one_whose_starter_has_died_is_in_nobodys_way_however_late_it_comes(self) -> None:
        """It must neither wait for ever without a name, nor take away the name of the next."""
        late = killed_as_soon_as_it_has_started_one(self.path, late=True)
        release = threading.Timer(0.1, os.kill, (late, signal.SIGCONT))
        release.start()
        keeper = self.reached()
        release.join()
        until(lambda: late not in keepers(self.path), "the end of the late one")
        keeper.hold("door", self.listener())
        self.leave(keeper)
        self.assertIsNotNone(self.taken(self.reached(), "door"))
        self.the_one()

    def test_one_that_comes_after_it_was_given_up_leaves_the_next_one_its_name(self) -> None:
        late = killed_as_soon_as_it_has_started_one(self.path, late=True)
        keeper = Keeper(self.path)
        self.addCleanup(self.assert_ends, self.path)
        self.addCleanup(keeper.end)
        keeper._start()  # as if it had been waited for in vain
        keeper.hold("door", self.listener())
        os.kill(late, signal.SIGCONT)
        until(lambda: late not in keepers(self.path), "the end of the late one")
        self.leave(keeper)
        self.assertIsNotNone(self.taken(self.reached(), "door"))

    def test_a_call_before_it_was_reached_is_refused(self) -> None:
        self.assertRaises(NoKeeper, Keeper(self.path).take, "door")


class Turns(Clock):
    """A reactor that turns when it is told to, and then really looks at what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[IReadDescriptor] = []

    def addReader(self, reader: IReadDescriptor) -> None:
        self.read.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.read.remove(reader)

    def turn(self, seconds: float = 0.0) -> None:
        self.advance(seconds)
        readable, _, _ = select.select(self.read, [], [], 0)
        for reader in readable:
            reader.doRead()

    def turn_until(self, condition: Callable[[], object], what: str) -> float:
        """Turn as the time goes by that a keeper needs; gives how much of its own it took."""
        begun = self.seconds()

        def turned() -> object:
            self.turn(LOOK)
            return condition()

        until(turned, what)
        return self.seconds() - begun


class WatchTests(KeeperFixture):
    """A keeper that dies is missed before anybody needs it."""

    def watched(self) -> tuple[Keeper, Turns]:
        keeper, turns = self.reached(), Turns()
        keeper.watch(cast("Reactor", turns))
        return keeper, turns

    def replaced(self, turns: Turns) -> float:
        """Kill the keeper; gives the seconds until there is another one, of which the machine takes some."""
        old = self.the_one()
        os.kill(old, signal.SIGKILL)
        turns.turn_until(lambda: not turns.read, "the end of the keeper")
        return turns.turn_until(lambda: turns.read and self.the_one() != old, "a new keeper")

    def test_a_killed_keeper_is_replaced_before_the_next_call(self) -> None:
        """P83, for the keeper: nobody calls it for days, and hookdeploy is killed after it."""
        keeper, turns = self.watched()
        listener = self.listener()
        keeper.hold("door", listener)
        self.assertLess(self.replaced(turns), PATIENCE)
        self.leave(keeper)
        copy = self.taken(self.reached(), "door")
        self.assertEqual(copy.getsockname(), listener.getsockname())

    def test_one_that_keeps_dying_is_replaced_after_longer_and_longer_pauses(self) -> None:
        _, turns = self.watched()
        pauses = []
        for _ in range(4):
            os.kill(self.the_one(), signal.SIGKILL)
            turns.turn_until(lambda: not turns.read, "the end of the keeper")
            [call] = turns.getDelayedCalls()
            pauses.append(round(call.getTime() - turns.seconds()))
            turns.advance(pauses[-1])
            turns.turn_until(lambda: turns.read, "a new keeper")
        self.assertEqual(pauses, [0, 1, 2, 4])
        turns.advance(STEADY)
        os.kill(self.the_one(), signal.SIGKILL)
        turns.turn_until(lambda: not turns.read, "the end of the keeper")
        [call] = turns.getDelayedCalls()
        self.assertEqual(call.getTime(), turns.seconds())

    def test_one_that_cannot_be_started_is_tried_again_after_a_pause(self) -> None:
        _, turns = self.watched()
        self.patch(sys, "executable", "/no/such/python")
        os.kill(self.the_one(), signal.SIGKILL)
        turns.turn_until(lambda: not turns.read, "the end of the keeper")
        turns.advance(0)
        [call] = turns.getDelayedCalls()
        self.assertEqual(call.getTime() - turns.seconds(), FIRST_PAUSE)

    def test_one_that_does_not_answer_is_given_up_and_tried_again(self) -> None:
        keeper, turns = self.watched()
        mute_program = self.directory / "mute"
        mute_program.write_text("#!/bin/sh\nexec sleep 1000\n")
        mute_program.chmod(0o755)
        self.patch(sys, "executable", str(mute_program))
        os.kill(self.the_one(), signal.SIGKILL)
        turns.turn_until(lambda: not turns.read, "the end of the keeper")
        turns.advance(0)
        mute = keeper._starting
        assert mute is not None
        turns.pump([LOOK] * round(KEEPER_PATIENCE / LOOK + 2))
        [call] = turns.getDelayedCalls()
        self.assertTrue(FIRST_PAUSE - 3 * LOOK < call.getTime() - turns.seconds() <= FIRST_PAUSE)
        self.patch(sys, "executable", PYTHON)
        turns.advance(FIRST_PAUSE)
        self.assertEqual(mute.returncode, -signal.SIGKILL)
        turns.turn_until(lambda: turns.read, "a new keeper")
        self.the_one()

    def test_a_call_in_the_pause_does_not_wait_for_its_end(self) -> None:
        keeper, turns = self.watched()
        self.replaced(turns)
        os.kill(self.the_one(), signal.SIGKILL)
        turns.turn_until(lambda: not turns.read, "the end of the keeper")
        self.assertIsNone(keeper.take("door"))
        self.assertEqual(turns.getDelayedCalls(), [])
        self.assertEqual(len(turns.read), 1)
        self.the_one()

    def test_a_call_while_another_keeper_starts_leaves_only_one(self) -> None:
        keeper, turns = self.watched()
        os.kill(self.the_one(), signal.SIGKILL)
        turns.turn_until(lambda: not turns.read, "the end of the keeper")
        turns.advance(0)
        self.assertIsNone(keeper.take("door"))
        self.assertEqual(turns.getDelayedCalls(), [])
        self.the_one()

    def test_nothing_is_watched_after_the_end(self) -> None:
        for finish in (Keeper.leave, Keeper.end):
            keeper, turns = self.watched()
            finish(keeper)
            self.assertEqual((turns.read, turns.getDelayedCalls()), ([], []))
            keeper.end()
            until(lambda: not keepers(self.path), "the end of the keeper")

    def test_an_end_while_another_keeper_starts_leaves_none(self) -> None:
        keeper, turns = self.watched()
        os.kill(self.the_one(), signal.SIGKILL)
        turns.turn_until(lambda: not turns.read, "the end of the keeper")
        turns.advance(0)
        keeper.end()
        self.assertEqual((keepers(self.path), turns.read, turns.getDelayedCalls()), ([], [], []))
        self.assertFalse(self.path.exists())
