"""What the story needs from the world outside, as ``typing.Protocol``: no logic of its own.

Each driver on the third floor proves itself with a line such as ``_: type[Journal] = SqliteJournal``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from twisted_hook.model import (
    Command,
    CommandResult,
    Commit,
    Delivery,
    Deployment,
    Environment,
    Launch,
    NewDelivery,
    Outcome,
    Phase,
    Receipt,
    ServerStatus,
    Steering,
    Step,
    Tree,
    Trigger,
)


class Journal(Protocol):
    """The memory of hookdeploy. Every write is durable when its coroutine returns, or raises ``JournalUnavailable``."""

    async def accept(self, delivery: NewDelivery) -> Receipt:
        """Write a genuine delivery and the deployments it leads to, in one transaction.

        One that was seen before, by (hook, guid) or by (hook, digest), is a duplicate: it makes a deployment again
        only for an app whose earlier deployment for it failed or was interrupted.
        """

    async def enqueue(self, app: str, trigger: Trigger, wanted: str | None = None) -> Deployment:
        """Write a deployment that no delivery asked for; ``wanted`` is what a person asked for in particular."""

    async def begin(self, deployment: str, at: float) -> Deployment:
        """Count one more attempt at a deployment and forget the phases and steps of an earlier one.

        One that was cut off while it migrated forgets nothing and stays in that phase.
        """

    async def advance(self, deployment: str, phase: Phase, at: float) -> None:
        """Write that a deployment has entered a phase."""

    async def describe(self, deployment: str, *, commit: Commit, previous: str | None, release: str | None) -> None:
        """Write which commit a deployment is about."""

    async def add_step(self, deployment: str, step: Step) -> None:
        """Write a command that has ended."""

    async def migrated(self, deployment: str, revision: str) -> None:
        """Write that the migration for this revision has ended well. ``begin`` does not forget it."""

    async def finish(
        self, deployment: str, outcome: Outcome, at: float, *, reason: str = "", superseded_by: str | None = None
    ) -> None:
        """Write how a deployment ended; one that has ended already keeps its first outcome."""

    async def last(self, app: str) -> Deployment | None:
        """The newest deployment of an app that did something and has ended: neither superseded nor unchanged."""

    async def last_about(self, app: str, revision: str) -> Deployment | None:
        """The newest deployment of an app that served this revision, took it back, or was cut off while it migrated.

        One that failed on its way to serve says nothing: another one may fare better. One takes a revision back that
        was triggered as a rollback, was deployed, and names it as ``previous``.
        """

    async def steering(self, app: str) -> Steering:
        """How a person holds an app back; not at all unless somebody has said so."""

    async def steer(self, app: str, steering: Steering) -> None:
        """Write how a person holds an app back."""

    async def unfinished(self) -> Sequence[Deployment]:
        """The deployments without an outcome, oldest first."""

    async def deployment(self, id: str) -> Deployment | None: ...

    async def deployments(
        self, *, app: str | None = None, limit: int = 50, before: str | None = None
    ) -> Sequence[Deployment]:
        """The newest deployments, newest first; ``before`` is the id of the last one already seen."""

    async def delivery(self, id: str) -> Delivery | None: ...

    async def deliveries(self, *, limit: int = 50) -> Sequence[Delivery]:
        """The newest deliveries, newest first."""


class CommandRunner(Protocol):
    """Runs programs that end."""

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        """Run a command in a session of its own until it ends or its time is up, and leave none of its family alive.

        ``output`` receives what it prints, as it comes. Cancelling ends the family too.
        """


class Checkout(Protocol):
    """Where an app's tree comes from.

    Its caller holds the lock of ``repository`` around ``fetch``, ``take``, ``put_back`` and ``recover``.
    """

    @property
    def repository(self) -> str:
        """The key of the lock: two checkouts with the same key share what git writes to."""

    async def fetch(self, run: CommandRunner, revision: str | None = None) -> Commit:
        """Ask the remote, and give the commit to deploy. Raises ``StepFailed``.

        That is the branch's tip, or the commit that a person has named by its id or the beginning of it.
        """

    async def take(self, run: CommandRunner, commit: Commit) -> Tree:
        """A complete tree of that commit. Raises ``StepFailed`` and leaves no half tree."""

    async def keep(self, run: CommandRunner, tree: Tree) -> None:
        """The tree serves now: make it the current one."""

    async def retire(self, run: CommandRunner, in_use: Collection[str]) -> None:
        """Let go of the trees that nobody needs; never of ``in_use``, the releases whose servers still run."""

    async def discard(self, run: CommandRunner, tree: Tree, in_use: Collection[str]) -> None:
        """The tree will not serve: let go of it, unless it has served before; ``in_use`` as for ``retire``."""

    async def current(self, run: CommandRunner) -> Tree | None:
        """The tree that is to serve after a start, or None if there is none yet."""

    async def kept(self, run: CommandRunner) -> Sequence[Tree]:
        """The trees that have served and can serve again, without a fetch and without a build; the newest first."""

    async def put_back(self, run: CommandRunner, tree: Tree) -> None:
        """Make one of ``kept`` ready to serve again. Raises ``StepFailed``."""

    async def recover(self, run: CommandRunner, serving: Tree | None) -> Tree | None:
        """After a start, give the current tree; what a deployment that was cut off has changed is taken back.

        ``serving`` is what an earlier hookdeploy has left running, and so the current one.
        """

    async def make_room(self, run: CommandRunner) -> None:
        """Remove what a hookdeploy that was killed has left half done, as far as it can be."""


class Environments(Protocol):
    """Where an app's dependencies are installed."""

    async def prepare(self, run: CommandRunner, tree: Tree, env: Mapping[str, str]) -> Environment:
        """The environment that the tree asks for, made if there is none yet. Raises ``StepFailed``.

        ``env`` is the whole environment of the commands that make it.
        """

    async def keep(self, run: CommandRunner, environment: Environment) -> None:
        """The environment serves now: let go of those that nobody needs."""


class DeploymentLog(Protocol):
    """What a deployment's commands print, for people."""

    def heading(self, text: str) -> None:
        """A line of ours."""

    def write(self, data: bytes) -> None:
        """Output of a command, as it came."""

    def close(self) -> None: ...


class AppServer(Protocol):
    """The server of one app."""

    @property
    def status(self) -> ServerStatus: ...

    @property
    def launch(self) -> Launch | None:
        """What serves, or is to serve again as soon as it can."""

    @property
    def outdated(self) -> bool:
        """Whether what serves was started otherwise than it would be started now."""

    def adopt(self) -> Launch | None:
        """Take over what an earlier hookdeploy has left running; what it serves, if it serves."""

    async def start(self, launch: Launch) -> None:
        """Serve this, at once or as soon as it can be. Never raises ``StepFailed``."""

    @property
    def in_use(self) -> frozenset[str]:
        """The releases whose servers still run, those that finish their last requests included."""

    async def swap(
        self,
        launch: Launch,
        entered: Callable[[Phase], None],
        *,
        probation: float = 0.0,
        keep: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        """Start a new generation beside the running one, and replace it without a lost request.

        For ``probation`` seconds both serve, and the new one is watched. Then ``keep`` is awaited, and only then the
        old one asked to end. ``entered`` is told each phase as it begins. Raises ``StepFailed``, ``ProbationFailed`` if
        the new one has met requests, or what ``keep`` raises; the old one then serves on.
        """
