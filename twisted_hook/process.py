"""Runs programs: each in a session of its own, with a deadline, and with an end that takes its whole family along.

Touches processes only. It never inherits an environment, never waits without a limit, and never decides what a
failure means.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from twisted.internet.defer import CancelledError
from twisted.internet.error import ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorFDSet, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from twisted_hook import leftovers
from twisted_hook.accounts import NeedsRoot, NoSuchAccount, to_become
from twisted_hook.boundaries import CommandRunner
from twisted_hook.commands import stepping_back
from twisted_hook.model import Command, CommandResult
from twisted_hook.once import Once
from twisted_hook.redaction import clean

STDOUT_CAP = 256 * 1024
TAIL_CAP = 16 * 1024
TAIL_LINES = 40
TERM_GRACE = 3.0
"""Seconds between SIGTERM and SIGKILL for a command whose time is up."""
LINGER = 2.0
"""Seconds that what a finished command left behind may still print before it is ended."""
LIFELINE = 3
"""The descriptor by which a command is let begin."""


if TYPE_CHECKING:
    # zope's interfaces are no classes at run time: only the type checker can join two of them.
    class Reactor(IReactorProcess, IReactorTime, IReactorFDSet, Protocol):  # type: ignore[misc]
        """What running a program needs of the reactor."""
else:
    Reactor = IReactorProcess


class CouldNotStart(Exception):
    """The program was never run; the text says why."""


def spawn(
    reactor: IReactorProcess,
    protocol: ProcessProtocol,
    *,
    argv: tuple[str, ...],
    env: Mapping[str, str],
    cwd: Path | None,
    fds: dict[int, int | str],
    user: str | None = None,
    through: tuple[str, ...] = (),
) -> IProcessTransport:
    """Start a program as the leader of a new session, so that ``killpg(pid)`` reaches its family.

    ``setsid`` (util-linux, busybox) executes in place when it is no group leader, which a spawned child never is: the
    pid is the program's own. So do the words ``through``, such as ``nice -n 10``. With ``user`` it runs as that
    account, with the account's groups and none of ours; it can use what we open for it, but not open it again
    (``/dev/stdout``). Raises ``CouldNotStart``; Twisted tells the same mistakes in four different ways.
    """
    _check_words((*argv, *env, *env.values()))
    directory = cwd or Path.cwd()
    if not directory.is_dir():
        raise CouldNotStart(f"no such directory: {directory}")
    program = argv[0] if "/" not in argv[0] else str(directory / argv[0])
    found = shutil.which(program, path=env.get("PATH", os.defpath))
    if found is None:
        raise CouldNotStart(f"no such program: {argv[0]}")
    setsid = shutil.which("setsid")
    if setsid is None:
        raise CouldNotStart("no such program: setsid (it is part of util-linux)")
    words = [setsid, *through, found, *argv[1:]]
    try:
        account = to_become(user)
        if account is not None:
            return reactor.spawnProcess(
                protocol, setsid, words, dict(env), str(directory), account.uid, account.gid, childFDs=fds
            )
        # With a directory Twisted would fork, which costs a large process far more than posix_spawn does.
        words = [*_IN_DIRECTORY, str(directory), *words]
        return reactor.spawnProcess(protocol, words[0], words, dict(env), childFDs=fds)
    except (OSError, ValueError, NoSuchAccount, NeedsRoot) as error:
        raise CouldNotStart(str(error)) from error


_EXECUTE = 'unset PWD OLDPWD && exec "$@"'
"""The end of a shell that only prepares something: nothing that it adds to the environment is left."""
_IN_DIRECTORY = ("/bin/sh", "-c", f'cd -- "$0" && {_EXECUTE}')
"""What to put before a directory and a program that is to run there."""


def held_back(descriptor: int) -> tuple[str, ...]:
    """What to put before a program that must not begin unless we live to let it: it waits for a line from there."""
    return ("/bin/sh", "-c", f"read -r _ <&{descriptor} && exec {descriptor}<&- && {_EXECUTE}", "sh")


def let_begin(process: IProcessTransport, descriptor: int) -> None:
    """Send the line for which a program waits that is held back; nothing happens if it has ended already."""
    with suppress(KeyError):
        process.writeToChild(descriptor, b"!\n")


def _check_words(words: Iterable[str]) -> None:
    """What no program can be given; in a forked child it would be a traceback."""
    try:
        encoded = [os.fsencode(word) for word in words]
    except UnicodeEncodeError as error:
        raise CouldNotStart(str(error)) from error
    if any(b"\0" in word for word in encoded):
        raise CouldNotStart("an argument or a variable contains a NUL byte")


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to a whole session's first process group; one that is gone is not an error."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # PermissionError: only zombies are left (Linux, macOS)
        return


class _Run(ProcessProtocol):
    """One command on its way: collects what it says and decides when it is over."""

    def __init__(self, clock: IReactorTime, command: Command, output: Callable[[bytes], None] | None) -> None:
        self._clock = clock
        self._command = command
        self._output = output
        self._stdout = bytearray()
        self._tail = bytearray()
        self._started = clock.seconds()
        self._timed_out = False
        self._ending = False
        self._exit: Failure | None = None
        self._timer: IDelayedCall | None = None
        self.gone: Once[CommandResult] = Once()

    def connectionMade(self) -> None:
        self._process = cast("IProcessTransport", self.transport)
        self.pid = int(self._process.pid)  # the transport forgets it at the exit, which may be the next thing
        self._arm(self._command.timeout, self._time_is_up)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        if childFD == 1 and len(self._stdout) < STDOUT_CAP:
            self._stdout += data[: STDOUT_CAP - len(self._stdout)]
        self._tail += data[-TAIL_CAP:]
        if len(self._tail) > 2 * TAIL_CAP:
            del self._tail[:-TAIL_CAP]
        if self._output is not None:
            self._output(data)

    def processExited(self, reason: Failure) -> None:
        self._exit = reason
        self._arm(LINGER, self._drop)

    def processEnded(self, reason: Failure) -> None:
        self._disarm()
        signal_group(self.pid, signal.SIGKILL)
        self.gone.happen(self._result(self._exit or reason))

    def begin(self) -> None:
        """Let a program begin that is held back."""
        let_begin(self._process, LIFELINE)
        self._process.closeChildFD(LIFELINE)

    def terminate(self) -> None:
        """End the family: SIGTERM now, SIGKILL after the grace. Asking again changes nothing."""
        if self._exit is not None or self._ending:
            return
        self._ending = True
        if group_exists(self.pid):
            signal_group(self.pid, signal.SIGTERM)
            self._arm(TERM_GRACE, self._kill)
        else:  # not in a session of its own yet, so that the program has not begun
            os.kill(self.pid, signal.SIGKILL)

    def _time_is_up(self) -> None:
        self._timed_out = True
        self.terminate()

    def _kill(self) -> None:
        signal_group(self.pid, signal.SIGKILL)

    def _drop(self) -> None:
        """The command has exited, but something that it left behind holds its pipes."""
        self._kill()
        self._process.loseConnection()

    def _arm(self, delay: float, call: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self._clock.callLater(delay, call)

    def _disarm(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _result(self, reason: Failure) -> CommandResult:
        ended = reason.value
        return CommandResult(
            command=self._command,
            status=ended.exitCode if isinstance(ended, ProcessTerminated) else 0,
            signal=ended.signal if isinstance(ended, ProcessTerminated) else None,
            timed_out=self._timed_out,
            seconds=self._clock.seconds() - self._started,
            stdout=bytes(self._stdout),
            tail=last_lines(bytes(self._tail[-TAIL_CAP:])),
        )


def group_exists(pid: int) -> bool:
    """Whether any process of the group is left, be it a zombie that nobody has reaped yet."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def last_lines(data: bytes) -> str:
    """The last lines of some output, cleaned for people."""
    return "\n".join(clean(data.decode("utf-8", "replace")).splitlines()[-TAIL_LINES:])


class SpawningRunner:
    """Runs commands with ``spawnProcess``.

    Each is written down in the directory ``records`` before it begins: if hookdeploy is killed, whenever that is, its
    next start finds it.
    """

    def __init__(self, reactor: Reactor, *, records: Path | None = None) -> None:
        self._reactor = reactor
        self._records = records
        self._nice, self._ionice = shutil.which("nice"), shutil.which("ionice")

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        running = _Run(self._reactor, command, output)
        fds: dict[int, int | str] = {1: "r", 2: "r"}
        through = stepping_back(command.nice, nice_program=self._nice, ionice_program=self._ionice)
        if self._records is not None:
            fds[LIFELINE] = "w"
            through = (*held_back(LIFELINE), *through)
        null = fds[0] = os.open(os.devnull, os.O_RDONLY)
        try:
            spawn(
                self._reactor,
                running,
                argv=command.argv,
                env=command.env,
                cwd=command.cwd,
                fds=fds,
                user=command.user,
                through=through,
            )
        except CouldNotStart as error:
            return CommandResult(command, None, None, False, 0.0, b"", "", could_not_start=str(error))
        finally:
            os.close(null)
        if self._records is None:
            return await _until_gone(running)
        with leftovers.recorded(self._records / f"{running.pid}.pid", running.pid):
            running.begin()
            return await _until_gone(running)


async def _until_gone(running: _Run) -> CommandResult:
    """Wait for the end; a cancelled caller gets its CancelledError only when the family is gone."""
    cancelled: CancelledError | None = None
    while not running.gone.happened:
        try:
            await running.gone.wait()
        except CancelledError as error:
            cancelled = error
            running.terminate()
    if cancelled is not None:
        raise cancelled
    return await running.gone.wait()


_: type[CommandRunner] = SpawningRunner
