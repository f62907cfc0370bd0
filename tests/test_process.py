"""Programs run in sessions of their own, end with their whole families, and end in a result, whatever happens."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import process as twisted_process
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from tests.accounts import NEEDS_ROOT, NOBODY, open_directory
from tests.patient import up_when
from tests.proctable import runs
from tests.waiting import become
from twisted_hook import leftovers, process
from twisted_hook.deploymentlog import CAP
from twisted_hook.model import Command, CommandResult
from twisted_hook.process import STDOUT_CAP, TAIL_CAP, TAIL_LINES, SpawningRunner

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {"PATH": os.environ["PATH"]}
SLEEPERS = "sleep 1000 & echo $! > first; sleep 1000 & echo $! > second; "
"""Two children that would live on, and where to find them."""


def shell(script: str, *, cwd: Path | None = None, timeout: float = 200.0) -> Command:
    return Command("sh", ("sh", "-c", script), ENVIRONMENT, cwd=cwd, timeout=timeout)


async def run(command: Command, output: Callable[[bytes], None] | None = None) -> CommandResult:
    return await SpawningRunner(reactor).run(command, output=output)


async def run_until(happened: Callable[[], object], command: Command) -> CommandResult:
    """Run a command whose time is up as soon as this has happened."""
    return await SpawningRunner(up_when(happened, command.timeout)).run(command)


def pids_written(directory: Path, *names: str) -> bool:
    return all((directory / name).exists() and (directory / name).read_text().endswith("\n") for name in names)


def pids(directory: Path, *names: str) -> list[int]:
    return [int((directory / name).read_text()) for name in names]


async def all_end(directory: Path, *names: str) -> None:
    await become(lambda: not any(runs(pid) for pid in pids(directory, *names)))


# How a command ends.


@pytest_twisted.ensureDeferred
async def test_a_command_that_ends_well_is_ok() -> None:
    result = await run(shell("echo out; echo err >&2"))
    assert (result.ok, result.status, result.signal, result.verdict) == (True, 0, None, "ok")
    assert result.stdout == b"out\n"
    assert sorted(result.tail.splitlines()) == ["err", "out"]
    assert result.seconds > 0


@pytest_twisted.ensureDeferred
async def test_a_command_that_fails_tells_its_exit_status() -> None:
    """P76: a step exits 1."""
    result = await run(shell("echo the reason; exit 3"))
    assert (result.ok, result.status, result.verdict, result.tail) == (False, 3, "exit 3", "the reason")


@pytest_twisted.ensureDeferred
async def test_a_command_that_a_signal_ends_tells_the_signal() -> None:
    """P76: a step is killed by a signal."""
    result = await run(shell("kill -9 $$"))
    assert (result.ok, result.status, result.signal, result.verdict) == (False, None, 9, "signal 9")


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("no-such-program",), "no such program: no-such-program"),
        (("/no/such/program",), "no such program: /no/such/program"),
        (("./no-such-step",), "no such program: ./no-such-step"),
        (("",), "no such program: "),
        (("/etc/passwd",), "no such program: /etc/passwd"),  # not executable
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_missing_program_is_a_result(argv: tuple[str, ...], why: str) -> None:
    """P76: a step's program is missing."""
    result = await run(Command("step", argv, ENVIRONMENT))
    assert not result.ok
    assert result.verdict == f"could not start: {why}"


@pytest.mark.parametrize("somewhere", [True, False])
@pytest.mark.parametrize("argument", ["a\0b", "a\ud800b"])
@pytest_twisted.ensureDeferred
async def test_an_argument_that_no_program_can_get_is_a_result(argument: str, somewhere: bool, tmp_path: Path) -> None:
    """P76: NUL in an argument."""
    result = await run(Command("echo", ("echo", argument), ENVIRONMENT, cwd=tmp_path if somewhere else None))
    assert not result.ok
    assert result.could_not_start


@pytest_twisted.ensureDeferred
async def test_a_variable_that_no_program_can_get_is_a_result() -> None:
    for name, value in (("NAME", "a\0b"), ("NA\0ME", "value")):
        result = await run(Command("env", ("env",), {**ENVIRONMENT, name: value}))
        assert result.verdict == "could not start: an argument or a variable contains a NUL byte"


@pytest_twisted.ensureDeferred
async def test_a_command_that_is_too_long_is_a_result(tmp_path: Path) -> None:
    for cwd in (None, tmp_path):
        result = await run(Command("echo", ("echo", "x" * 3_000_000), ENVIRONMENT, cwd=cwd))
        assert not result.ok


@pytest_twisted.ensureDeferred
async def test_an_argument_that_is_no_utf_8_arrives_as_it_is(tmp_path: Path) -> None:
    """A file name from git, as Python keeps it."""
    result = await run(Command("printf", ("printf", "%s", "caf\udce9"), ENVIRONMENT))
    assert result.stdout == b"caf\xe9"


@pytest_twisted.ensureDeferred
async def test_a_missing_directory_is_a_result(tmp_path: Path) -> None:
    """P76: the directory of a step is missing."""
    (tmp_path / "file").touch()
    for name in ("missing", "file", "nul\0"):
        result = await run(shell("true", cwd=tmp_path / name))
        assert result.verdict == f"could not start: no such directory: {tmp_path / name}"


@pytest_twisted.ensureDeferred
async def test_a_script_of_the_tree_is_found_there(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "step").write_text("#!/bin/sh\npwd\n")
    (tmp_path / "bin" / "step").chmod(0o755)
    result = await run(Command("step", ("bin/step",), ENVIRONMENT, cwd=tmp_path))
    assert result.stdout.decode() == f"{tmp_path}\n"


@pytest_twisted.ensureDeferred
async def test_a_script_whose_interpreter_is_missing_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "step").write_text("#!/no/such/interpreter\n")
    (tmp_path / "step").chmod(0o755)
    result = await run(Command("step", ("./step",), ENVIRONMENT, cwd=tmp_path))
    assert not result.ok
    assert "No such file or directory" in result.tail


@pytest_twisted.ensureDeferred
async def test_a_failed_start_leaks_no_descriptor(tmp_path: Path) -> None:
    async def start_in_vain() -> None:
        await run(Command("echo", ("echo", "a\0b"), ENVIRONMENT))
        await run(Command("none", ("no-such-program",), ENVIRONMENT))
        await run(shell("true", cwd=tmp_path / "missing"))

    await start_in_vain()
    before = len(list(Path("/proc/self/fd").iterdir()))
    await start_in_vain()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest_twisted.ensureDeferred
async def test_we_are_not_forked_for_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    result = await run(Command("pwd", ("pwd", "-P"), ENVIRONMENT, cwd=tmp_path))
    assert result.stdout.decode() == f"{tmp_path.resolve()}\n"


# What a command gets.


@pytest_twisted.ensureDeferred
async def test_a_command_sees_only_its_own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """P80: no webhook secret, no token, no undeclared variable."""
    monkeypatch.setenv("GITHUB_SECRET", "hunter2")
    declared = {**ENVIRONMENT, "DECLARED": "value", "EMPTY": ""}
    for cwd, records in ((None, None), (tmp_path, None), (tmp_path, tmp_path)):
        command = Command("env", ("env",), declared, cwd=cwd)
        result = await SpawningRunner(reactor, records=records).run(command)
        assert dict(line.split("=", 1) for line in result.stdout.decode().splitlines()) == declared


@pytest_twisted.ensureDeferred
async def test_a_command_inherits_no_descriptor_and_reads_nothing(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        for cwd in (None, tmp_path):
            result = await run(shell("cat; ls /proc/$$/fd | sort -n | tr '\\n' ' '", cwd=cwd))
            assert result.stdout.split()[:3] == [b"0", b"1", b"2"]
            assert str(secret.fileno()).encode() not in result.stdout.split()


@pytest_twisted.ensureDeferred
async def test_a_command_leads_a_session_of_its_own() -> None:
    result = await run(shell("echo $$; cut -d ' ' -f 5,6 /proc/$$/stat"))
    pid, group, session = result.stdout.split()
    assert pid == group == session


# How a family ends.


@pytest_twisted.ensureDeferred
async def test_a_command_whose_time_is_up_ends_with_its_whole_family(tmp_path: Path) -> None:
    """P77."""
    command = shell(SLEEPERS + "echo begun; echo > begun; wait", cwd=tmp_path, timeout=20)
    result = await run_until((tmp_path / "begun").exists, command)
    assert (result.ok, result.timed_out, result.verdict) == (False, True, "timeout after 20 s")
    assert result.tail == "begun"
    await all_end(tmp_path, "first", "second")


@pytest_twisted.ensureDeferred
async def test_a_command_that_ignores_the_end_of_its_time_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P77: neither the command nor its children care for SIGTERM."""
    monkeypatch.setattr(process, "TERM_GRACE", 0.5)
    script = f"trap '' TERM; {SLEEPERS} echo > begun; while :; do sleep 1000; done"
    result = await run_until((tmp_path / "begun").exists, shell(script, cwd=tmp_path, timeout=20))
    assert (result.signal, result.timed_out) == (signal.SIGKILL, True)
    await all_end(tmp_path, "first", "second")


@pytest_twisted.ensureDeferred
async def test_a_command_that_ends_well_after_its_time_was_up_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TERM_GRACE", 1000.0)
    script = "trap 'exit 0' TERM; echo > begun; while :; do sleep 0.05; done"
    result = await run_until((tmp_path / "begun").exists, shell(script, cwd=tmp_path, timeout=0.2))
    assert (result.ok, result.status, result.verdict) == (False, 0, "timeout after 0.2 s")


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_keeps_the_output_open_does_not_keep_the_command(tmp_path: Path) -> None:
    """P78."""
    result = await run(shell(SLEEPERS + "echo ok", cwd=tmp_path))
    assert (result.ok, result.stdout) == (True, b"ok\n")
    await all_end(tmp_path, "first", "second")


@pytest_twisted.ensureDeferred
async def test_a_daemon_that_has_left_the_session_does_not_keep_the_command_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P78: out of reach of any signal to the group, but not able to hold anybody up."""
    monkeypatch.setattr(process, "LINGER", 0.5)
    script = "setsid sh -c 'echo $$ > daemon; exec sleep 1000' & until [ -s daemon ]; do sleep 0.02; done; echo ok"
    result = await run(shell(script, cwd=tmp_path))
    assert (result.ok, result.stdout) == (True, b"ok\n")
    os.kill(pids(tmp_path, "daemon")[0], signal.SIGKILL)


@pytest_twisted.ensureDeferred
async def test_a_silent_daemon_is_ended_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LINGER", 1000.0)
    result = await run(shell("sleep 1000 > /dev/null 2>&1 & echo $! > daemon", cwd=tmp_path))
    assert result.ok
    await all_end(tmp_path, "daemon")


@pytest_twisted.ensureDeferred
async def test_what_a_command_prints_last_is_not_lost() -> None:
    for _ in range(20):
        result = await run(shell("head -c 60000 /dev/zero; echo end"))
        assert (len(result.stdout), result.stdout[-4:]) == (60004, b"end\n")


@pytest_twisted.ensureDeferred
async def test_a_cancelled_command_ends_with_its_family_before_its_caller_is_told(tmp_path: Path) -> None:
    running = Deferred.fromCoroutine(run(shell(SLEEPERS + "echo $$ > leader; wait", cwd=tmp_path)))
    await become(lambda: pids_written(tmp_path, "leader"))
    running.cancel()
    with pytest.raises(CancelledError):
        await running
    assert not runs(pids(tmp_path, "leader")[0])
    await all_end(tmp_path, "leader", "first", "second")


@pytest_twisted.ensureDeferred
async def test_cancelling_again_and_again_neither_ends_the_wait_nor_puts_off_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that ignores SIGTERM, and a caller in a hurry."""
    monkeypatch.setattr(process, "TERM_GRACE", 0.5)
    script = "trap '' TERM; echo $$ > leader; while :; do sleep 1000; done"
    running = Deferred.fromCoroutine(run(shell(script, cwd=tmp_path)))
    await become(lambda: pids_written(tmp_path, "leader"))
    [leader] = pids(tmp_path, "leader")
    told: list[tuple[object, bool]] = []
    running.addBoth(lambda result: told.append((result, runs(leader))))
    while not told:
        running.cancel()
        await deferLater(reactor, 0.2)
    [(result, leader_runs)] = told
    assert isinstance(result, Failure)
    assert result.check(CancelledError)
    assert not leader_runs


@pytest_twisted.ensureDeferred
async def test_a_command_that_is_cancelled_at_once_is_gone_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session does not exist yet when the first signal is sent to it."""
    monkeypatch.setattr(process, "TERM_GRACE", 1000.0)
    for _ in range(10):
        running = Deferred.fromCoroutine(run(shell("sleep 1000", cwd=tmp_path)))
        running.cancel()
        with pytest.raises(CancelledError):
            await running


@pytest_twisted.ensureDeferred
async def test_commands_that_run_at_the_same_time_do_not_mix() -> None:
    heard: dict[int, bytearray] = {number: bytearray() for number in range(12)}
    commands = [shell(f"for i in 1 2 3 4 5; do echo {number}; sleep 0.02; done; exit {number}") for number in heard]
    results = await gatherResults(
        [Deferred.fromCoroutine(run(command, output=heard[number].extend)) for number, command in enumerate(commands)]
    )
    for number, result in enumerate(results):
        assert result.stdout == bytes(heard[number]) == f"{number}\n".encode() * 5
        assert result.status == number


@pytest_twisted.ensureDeferred
async def test_a_command_that_ends_before_its_start_is_over_is_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twisted reaps it while it starts it, and forgets its pid."""

    def register_late(pid: int, process: object) -> None:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        register(pid, process)

    register = twisted_process.registerReapProcessHandler
    monkeypatch.setattr(twisted_process, "registerReapProcessHandler", register_late)
    result = await run(shell("echo quick; exit 3"))
    assert (result.status, result.tail) == (3, "quick")


# What is written down of it.


@pytest_twisted.ensureDeferred
async def test_a_command_is_on_record_while_it_runs(tmp_path: Path) -> None:
    records = tmp_path / "commands"
    records.mkdir()
    result = await SpawningRunner(reactor, records=records).run(shell(f"cat {records}/$$.pid; echo $$"))
    pid, started, own = result.stdout.split()
    assert (pid, started.isdigit()) == (own, True)
    assert list(records.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_a_command_that_cannot_be_recorded_runs_all_the_same(tmp_path: Path) -> None:
    assert (await SpawningRunner(reactor, records=tmp_path / "none").run(shell("true"))).ok


@pytest_twisted.ensureDeferred
async def test_a_command_that_nobody_has_written_down_never_begins(tmp_path: Path) -> None:
    """P83: a hookdeploy that is killed as soon as it has started one; its next start could not find it."""
    script = """
import os, signal, sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted_hook import leftovers
from twisted_hook.model import Command
from twisted_hook.process import SpawningRunner

def killed(path, pid):
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

leftovers.record = killed
here = Path(sys.argv[1])
command = Command("step", ("sh", "-c", "echo > begun"), {"PATH": os.environ["PATH"]}, cwd=here)
Deferred.fromCoroutine(SpawningRunner(reactor, records=here).run(command))
"""
    command = (sys.executable, "-c", script, str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)  # noqa: ASYNC221
    await become(lambda: not runs(int(done.stdout)))
    assert list(tmp_path.iterdir()) == []


@pytest_twisted.ensureDeferred
async def test_what_a_killed_hookdeploy_was_running_is_ended_by_the_next(tmp_path: Path) -> None:
    """P83: it would go on writing into a tree that the next one is about to remove."""
    script = """
import os, sys
from pathlib import Path
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted_hook.model import Command
from twisted_hook.process import SpawningRunner

here = Path(sys.argv[1])
command = Command("step", ("sh", "-c", sys.argv[2]), {"PATH": os.environ["PATH"]}, cwd=here)
react(lambda reactor: Deferred.fromCoroutine(SpawningRunner(reactor, records=here).run(command)))
"""
    step = SLEEPERS + "echo $$ > leader; mv leader there; wait"
    killed = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), step], cwd=ROOT)  # noqa: ASYNC220
    await become(lambda: (tmp_path / "there").exists() and any(tmp_path.glob("*.pid")))
    killed.kill()
    killed.wait()
    assert all(runs(pid) for pid in pids(tmp_path, "there", "first", "second"))
    leftovers.end_all(tmp_path)
    await all_end(tmp_path, "there", "first", "second")
    assert list(tmp_path.glob("*.pid")) == []


# How much of what it prints is kept.


@pytest_twisted.ensureDeferred
async def test_only_the_beginning_and_the_last_lines_are_kept() -> None:
    result = await run(shell("seq 1000000"))
    assert len(result.stdout) == STDOUT_CAP
    assert result.stdout.startswith(b"1\n2\n3\n")
    assert result.tail.splitlines() == [str(number) for number in range(1000000 - TAIL_LINES + 1, 1000001)]


@pytest_twisted.ensureDeferred
async def test_the_last_lines_are_not_longer_than_a_person_reads() -> None:
    result = await run(shell("head -c 1000000 /dev/zero | tr '\\0' x"))
    assert len(result.tail) <= TAIL_CAP


@pytest_twisted.ensureDeferred
async def test_the_last_lines_can_be_displayed() -> None:
    result = await run(shell(r"printf 'gr\303\274n \033[31mred\033[0m \377\000 a\rb\n'"))
    assert result.tail == "grün red \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} a\nb"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("yes 'a line that is of no use to anybody at all' | head -c 100000000", id="100-MB"),
        pytest.param("seq 1000000", id="a-million-lines"),
        pytest.param("head -c 50000000 /dev/zero | tr '\\0' x", id="a-line-of-50-MB"),
        pytest.param("head -c 20000000 /dev/urandom", id="invalid-UTF-8"),
        pytest.param(
            r"""yes "$(printf '\033[31mred, and some words more\033[0m\033]0;title\007')" | head -c 16000000""",
            id="escape-sequences",
        ),
    ],
)
def test_a_flood_of_output_takes_little_memory_and_leaves_a_readable_log(script: str, tmp_path: Path) -> None:
    """P79."""
    done = subprocess.run(
        [sys.executable, "-c", FLOOD, script, str(tmp_path / "log")], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    grown, ok = done.stdout.split()
    assert ok == b"True"
    assert int(grown) < 32 * 1024  # KiB
    log = (tmp_path / "log").read_text("utf-8")
    assert CAP <= len(log.encode()) < CAP + 200
    assert "\n[truncated: " in log[-100:]
    plain = re.sub("\x1b\\[[0-9;:]*m", "", log)  # colours alone are kept
    assert set(plain) & set(map(chr, range(0x20))) <= {"\t", "\n"}


# Who it is, and how much it steps back.

as_another_account = pytest.mark.skipif(bool(NEEDS_ROOT), reason=NEEDS_ROOT)


@as_another_account
@pytest_twisted.ensureDeferred
async def test_a_command_runs_as_its_account_with_the_groups_of_that_alone() -> None:
    with open_directory() as directory:
        for cwd in (None, directory):
            result = await run(replace(shell("id -u; id -ru; id -g; id -G", cwd=cwd), user="nobody"))
            uid, gid, groups = NOBODY.pw_uid, NOBODY.pw_gid, os.getgrouplist("nobody", NOBODY.pw_gid)
            assert result.stdout.decode().split("\n")[:3] == [str(uid), str(uid), str(gid)]
            assert sorted(map(int, result.stdout.split()[3:])) == sorted(groups)


@as_another_account
@pytest_twisted.ensureDeferred
async def test_a_command_of_another_account_cannot_become_us_again() -> None:
    script = "import os; print(os.getresuid(), os.getresgid())\ntry: os.setuid(0)\nexcept OSError as e: print(e.errno)"
    result = await run(Command("python", ("/usr/bin/python3", "-c", script), ENVIRONMENT, user="nobody"))
    uid, gid = NOBODY.pw_uid, NOBODY.pw_gid
    assert result.stdout.decode() == f"{(uid,) * 3} {(gid,) * 3}\n1\n"


@as_another_account
@pytest_twisted.ensureDeferred
async def test_a_command_of_another_account_leads_a_session_and_ends_with_its_family() -> None:
    """P77, for an account that is not ours."""
    with open_directory() as directory:
        os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
        script = f"cut -d' ' -f1,6 /proc/$$/stat > session; {SLEEPERS} echo > begun; sleep 1000"
        command = replace(shell(script, cwd=directory, timeout=0.5), user="nobody", nice=1)
        result = await run_until((directory / "begun").exists, command)
        assert result.verdict == "timeout after 0.5 s"
        pid, session = (directory / "session").read_text().split()
        assert pid == session
        await all_end(directory, "first", "second")


@pytest_twisted.ensureDeferred
async def test_an_account_that_is_not_there_is_a_result() -> None:
    result = await run(replace(shell("true"), user="no-such-account"))
    assert result.verdict == "could not start: there is no account 'no-such-account' on this machine"


@pytest_twisted.ensureDeferred
async def test_our_own_account_needs_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    own = pwd.getpwuid(os.geteuid()).pw_name
    assert (await run(replace(shell("true"), user=own))).ok
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY.pw_uid + 1)
    refused = await run(replace(shell("true"), user="nobody"))
    assert refused.verdict == "could not start: only root can run a command as nobody"


@pytest_twisted.ensureDeferred
async def test_a_command_steps_back_as_far_as_it_is_told() -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    for nice in (0, 10, 19):
        result = await run(replace(shell(f"nice; ionice -p $$; ionice -p {os.getpid()}"), nice=nice))
        told, disk, our_disk = result.stdout.decode().splitlines()
        assert int(told) == min(19, ours + nice)
        assert disk == ("best-effort: prio 7" if nice else our_disk)


@pytest_twisted.ensureDeferred
async def test_what_steps_back_is_the_command_itself(tmp_path: Path) -> None:
    """The pid that is recorded and ended is the command's own, whatever it was started through."""
    records = tmp_path / "records"
    records.mkdir()
    command = replace(shell(f"echo $$; until ls {records} | grep .; do sleep 0.01; done"), nice=10)
    result = await SpawningRunner(reactor, records=records).run(command)
    pid, record = result.stdout.decode().split()
    assert record == f"{pid}.pid"


@pytest_twisted.ensureDeferred
async def test_a_missing_program_is_named_however_much_it_would_step_back() -> None:
    result = await run(Command("step", ("no-such-program",), ENVIRONMENT, nice=10))
    assert result.verdict == "could not start: no such program: no-such-program"


@pytest_twisted.ensureDeferred
async def test_where_there_is_no_nice_a_command_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **given: None if name in {"nice", "ionice"} else which(name, **given)
    )
    assert (await run(replace(shell("true"), nice=10))).ok


FLOOD = """
import os, resource, sys
from pathlib import Path
from twisted.internet import process as twisted_process
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted_hook.deploymentlog import FileLog
from twisted_hook.model import Command
from twisted_hook.process import SpawningRunner
from twisted_hook.redaction import Redactor

async def main(reactor):
    runner = SpawningRunner(reactor)
    log = FileLog(Path(sys.argv[2]), Redactor(["hunter2", "-----BEGIN" + "k" * 3000]), reactor.seconds)
    env = {"PATH": os.environ["PATH"]}
    await runner.run(Command("warm up", ("echo", "x" * 100000), env), output=log.write)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await runner.run(Command("flood", ("sh", "-c", sys.argv[1]), env), output=log.write)
    log.heading("over")
    log.close()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, result.ok)

react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
"""
