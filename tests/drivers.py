"""Memory drivers of the boundaries around a deployment: each does what a test has told it, and notes what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

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
        self._repository = repository
        self._taken = 0

    @property
    def repository(self) -> str:
        return self._repository

    async def fetch(self, run: CommandRunner) -> Commit:
        await self.called("fetch")
        await run.run(Command("git fetch", ("git", "fetch"), {}))
        return self.tip

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        await self.called("take")
        self._taken += 1
        release = f"{self._taken}-{commit.revision[:7]}"
        self.trees.append(Tree(Path("/releases") / release, commit, release))
        return self.trees[-1]

    async def keep(self, run: CommandRunner, tree: Tree) -> None:
        await self.called("keep")
        self.served = tree

    async def discard(self, run: CommandRunner, tree: Tree) -> None:
        await self.called("discard")
        self.trees.remove(tree)

    async def current(self, run: CommandRunner) -> Tree | None:
        await self.called("current")
        return self.served


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

    async def swap(self, launch: Launch, entered: Callable[[Phase], None]) -> None:
        entered(Phase.STARTING)
        entered(Phase.CHECKING)
        await self.called("swap")
        entered(Phase.SWAPPING)
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
