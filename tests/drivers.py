"""Memory drivers of the boundaries around a deployment: each does what a test has told it, and notes what it did."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.logger import ILogObserver, LogEvent
from zope.interface import implementer

from twisted_hook.boundaries import AppServer, Checkout, CommandRunner, DeploymentLog, Environments
from twisted_hook.model import Command, CommandResult, Commit, Environment, Launch, Phase, ServerStatus, Tree
from twisted_hook.once import Once


def commit(letter: str) -> Commit:
    """A commit whose id is this hexadecimal letter, forty times."""
    return Commit(letter * 40, f"commit {letter}", "Ada")


@implementer(ILogObserver)
class HeardEvents:
    """What was said to a logger of its own, so that nobody else hears it."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        self.events.append(event)


class Told:
    """Does what it has been told: succeeds at once, fails, or waits until it may go on."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.waiting: dict[str, Once[None]] = {}

    def hold(self, call: str) -> Once[None]:
        """From now on this call waits until what is returned happens."""
        self.waiting[call] = Once()
        return self.waiting[call]

    async def called(self, call: str) -> None:
        self.calls.append(call)
        if call in self.waiting:
            await self.waiting[call].wait()
        if call in self.failing:
            raise self.failing[call]


class MemoryRunner(Told):
    """Runs nothing: a command, known by its name, ends with the status and the output that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: list[Command] = []
        self.status: dict[str, int] = {}
        self.prints: dict[str, bytes] = {}

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        self.commands.append(command)
        await self.called(command.name)
        said = self.prints.get(command.name, b"")
        if output is not None:
            output(said)
        status = self.status.get(command.name, 0)
        return CommandResult(command, status, None, False, 1.0, said, said.decode())


class MemoryCheckout(Told):
    """A remote with one tip, and trees that exist only by name."""

    def __init__(self, tip: Commit, repository: str = "mirror") -> None:
        super().__init__()
        self.tip = tip
        self.trees: list[Tree] = []
        self.served: Tree | None = None
        """The current tree."""
        self.have_served: list[Tree] = []
        self.wanted: frozenset[str] = frozenset()
        """What was not to be retired the last time."""
        self.untouched = False
        """The files that are asked about are as they were."""
        self.rooms = 0
        """How often room was made."""
        self._repository = repository
        self._taken = 0

    @property
    def repository(self) -> str:
        return self._repository

    @property
    def remote(self) -> str:
        return f"https://example.com/{self._repository}.git"

    @property
    def follows(self) -> tuple[str, ...]:
        return ("refs/heads/main",)

    async def advertised(self, run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
        await self.called("advertised")
        await run.run(Command("git ls-remote", ("git", "ls-remote"), {}))
        return {"refs/heads/main": self.tip.revision}

    def tip_of(self, advertised: Mapping[str, str]) -> str | None:
        return advertised.get("refs/heads/main")

    async def has(self, run: CommandRunner, revision: str, at: str | None = None) -> bool:
        return revision == (at or (self.served.commit.revision if self.served else None))

    async def fetch(self, run: CommandRunner, revision: str | None = None) -> Commit:
        await self.called("fetch")
        await run.run(Command("git fetch", ("git", "fetch"), {}))
        return self.tip if revision is None else commit(revision[0])

    async def touches(self, run: CommandRunner, commit: Commit, patterns: Sequence[str]) -> bool:
        await self.called("touches")
        return not self.untouched

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        await self.called("take")
        self._taken += 1
        release = f"{self._taken}-{commit.revision[:7]}"
        self.trees.append(Tree(Path("/releases") / release, commit, release))
        return self.trees[-1]

    async def keep(self, run: CommandRunner, tree: Tree) -> None:
        await self.called("keep")
        self.served = tree
        if tree not in self.have_served:
            self.have_served.append(tree)

    async def retire(self, run: CommandRunner, in_use: Collection[str]) -> None:
        self.wanted = frozenset(in_use)
        await self.called("retire")

    async def discard(self, run: CommandRunner, tree: Tree, in_use: Collection[str]) -> None:
        await self.called("discard")
        if tree not in self.have_served and tree.release not in in_use:
            self.trees.remove(tree)

    async def current(self, run: CommandRunner) -> Tree | None:
        await self.called("current")
        return self.served

    async def kept(self, run: CommandRunner) -> Sequence[Tree]:
        return self.have_served[::-1]

    async def put_back(self, run: CommandRunner, tree: Tree) -> None:
        await self.called("put back")

    async def recover(self, run: CommandRunner, serving: Tree | None) -> Tree | None:
        if serving is not None:
            await self.keep(run, serving)
        return await self.current(run)

    async def make_room(self, run: CommandRunner) -> None:
        self.rooms += 1


class MemoryEnvironments(Told):
    """One environment for every tree."""

    def __init__(self, directory: Path | None = None) -> None:
        super().__init__()
        self.seen: list[Mapping[str, str]] = []
        self.kept: list[Environment] = []
        self.environment = Environment(Path("/usr/bin/python3"), directory)

    async def prepare(self, run: CommandRunner, tree: Tree, env: Mapping[str, str]) -> Environment:
        self.seen.append(env)
        await self.called("prepare")
        return self.environment

    async def keep(self, run: CommandRunner, environment: Environment) -> None:
        self.kept.append(environment)


class MemoryServer(Told):
    """A server that starts whatever it is given; a failing swap leaves it as it was."""

    def __init__(self) -> None:
        super().__init__()
        self._launch: Launch | None = None
        self.launches: list[Launch] = []
        self.probations: list[float] = []
        self.state = "down"
        self.left: Launch | None = None
        """What an earlier hookdeploy has left running."""
        self.outdated = False

    @property
    def status(self) -> ServerStatus:
        return ServerStatus(self.state, 0.0)

    @property
    def launch(self) -> Launch | None:
        return self._launch

    def adopt(self) -> Launch | None:
        if self.left is not None:
            self._launch, self.state = self.left, "serving"
        return self.left

    async def start(self, launch: Launch) -> None:
        await self.called("start")
        self._serve(launch)

    @property
    def in_use(self) -> frozenset[str]:
        return frozenset({self._launch.tree.release} if self._launch else ())

    async def swap(
        self,
        launch: Launch,
        entered: Callable[[Phase], None],
        *,
        probation: float = 0.0,
        keep: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self.probations.append(probation)
        entered(Phase.STARTING)
        entered(Phase.CHECKING)
        await self.called("swap")
        entered(Phase.SWAPPING)
        if self._launch is not None and probation:
            entered(Phase.PROBATION)
            await self.called("probation")
        if keep is not None:
            await keep()
        self._serve(launch)

    def _serve(self, launch: Launch) -> None:
        self._launch, self.state = launch, "serving"
        self.launches.append(launch)


class MemoryLog:
    """The lines of a deployment's log."""

    def __init__(self) -> None:
        self.headings: list[str] = []
        self.output = b""
        self.closed = False

    def heading(self, text: str) -> None:
        assert not self.closed, f"{text!r} came after the end"
        self.headings.append(text)

    def write(self, data: bytes) -> None:
        assert not self.closed, f"{data!r} came after the end"
        self.output += data

    def close(self) -> None:
        self.closed = True


_runner: type[CommandRunner] = MemoryRunner
_checkout: type[Checkout] = MemoryCheckout
_environments: type[Environments] = MemoryEnvironments
_server: type[AppServer] = MemoryServer
_log: type[DeploymentLog] = MemoryLog
