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
    FailedDelivery,
    Launch,
    NewDelivery,
    Outcome,
    Parked,
    Phase,
    Receipt,
    ServerStatus,
    Steering,
    Step,
    Tree,
    Trigger,
    Verified,
)


class Journal(Protocol):
    """The memory of hookdeploy. Every write is durable when its coroutine returns, or raises ``JournalUnavailable``."""

    async def accept(self, delivery: NewDelivery) -> Receipt:
        """Write a genuine delivery and the deployments it leads to, in one transaction.

        One that was seen before, by (hook, guid) or by (hook, digest), is a duplicate: it makes a deployment again
        only for an app whose earlier deployment for it failed or was interrupted.
        """

    async def enqueue(
        self, app: str, trigger: Trigger, wanted: str | None = None, *, delivery: str | None = None, reason: str = ""
    ) -> Deployment:
        """Write a deployment that no arriving delivery asked for.

        ``wanted`` is what a person asked for in particular, ``delivery`` the id of the one that is replayed, and
        ``reason`` why it is made, which stays until it ends for another.
        """

    async def begin(self, deployment: str, at: float) -> Deployment:
        """Count one more attempt at a deployment and forget the phases and steps of an earlier one.

        What was superseded on the way to it, by it or by others that were, is superseded by it from now on.
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
        self,
        deployment: str,
        outcome: Outcome,
        at: float,
        *,
        reason: str = "",
        transient: bool = False,
    ) -> None:
        """Write how a deployment ended; one that has ended already keeps its first outcome.

        An empty ``reason`` leaves the one that it was made for.
        """

    async def supersede(self, covered: Mapping[str, str], at: float) -> None:
        """Write that deployments are superseded, each by which; one that has ended already keeps its first outcome.

        One that is not there is passed over, and supersedes nothing by name.
        """

    async def last(self, app: str) -> Deployment | None:
        """The newest deployment of an app that did something and has ended: neither superseded nor unchanged."""

    async def last_about(self, app: str, revision: str) -> Deployment | None:
        """The newest deployment of an app that served this revision, took it back, or was cut off while it migrated.

        One that failed on its way to serve says nothing: another one may fare better. One takes a revision back that
        was triggered as a rollback, was deployed, and names it as ``previous``.
        """

    async def decided(self, app: str, revision: str) -> Deployment | None:
        """The newest deployment of an app that has come to something about this revision.

        That is: deployed, failed, rolled back, cancelled or interrupted; neither superseded nor unchanged.
        """

    async def last_good(self, app: str, release: str | None = None) -> Deployment | None:
        """The newest deployment of an app that was deployed, of this release if one is named."""

    async def verified(self) -> Sequence[Verified]:
        """Which secrets have verified deliveries, and when each did so last; one that never has is not among them."""

    async def told_of(self, revision: str) -> bool:
        """Whether a delivery is here that named this commit."""

    async def ask_again(self, hook: str, guid: str, at: float) -> bool:
        """Write that the forge is to deliver this again; False if it was asked before, or the delivery is here."""

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

    async def parked(self) -> Sequence[Parked]:
        """The rows that could not be read, newest first."""

    async def prune(self, *, before: float, rows: int) -> None:
        """Let go of deliveries and deployments from before ``before``, and of the oldest beyond so many of each.

        What has not ended stays, and what says that a revision was put back or may have been half migrated; and of each
        app what came to something last by its branch, by a person's choice (``wanted``) and as a rollback.
        """


class CommandRunner(Protocol):
    """Runs programs that end."""

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        """Run a command in a session of its own until it ends or its time is up, and leave none of its family alive.

        ``output`` receives what it prints, as it comes. Cancelling ends the family too.
        """


class Checkout(Protocol):
    """Where an app's tree comes from.

    Its caller holds the lock of ``repository`` around ``fetch``, ``take``, ``put_back`` and ``recover``. The others
    may be called at any time.
    """

    @property
    def repository(self) -> str:
        """The key of the lock: two checkouts with the same key share what git writes to."""

    @property
    def remote(self) -> str:
        """Where it fetches from; the refs of two with the same remote can be asked for at once."""

    @property
    def follows(self) -> tuple[str, ...]:
        """Which of the remote's refs it wants to know of: full names, ``HEAD``, or patterns as of git-ls-remote."""

    async def advertised(self, run: CommandRunner, patterns: Collection[str]) -> Mapping[str, str]:
        """Ask the remote for its refs of these patterns, and fetch nothing. Raises ``StepFailed``.

        The commit of each by its full name, of an annotated tag the one that it is of; and under ``HEAD`` the full name
        of the branch that the remote's HEAD is on.
        """

    def tip_of(self, advertised: Mapping[str, str]) -> str | None:
        """Which commit ``fetch`` would give now; None if the remote has no such branch or tag."""

    async def has(self, run: CommandRunner, revision: str, at: str | None = None) -> bool:
        """Whether the current tree, or one that is ``at`` a commit, is of this revision or of local commits on it."""

    async def fetch(self, run: CommandRunner, revision: str | None = None) -> Commit:
        """Ask the remote, and give the commit to deploy. Raises ``StepFailed``.

        That is the branch's tip, or the commit of the newest tag that matches, or the commit that a person has named
        by its id or the beginning of it.
        """

    async def touches(self, run: CommandRunner, commit: Commit, patterns: Sequence[str]) -> bool:
        """Whether a file of these patterns differs between the current tree and a commit that was fetched.

        A pattern is a path or a glob in which ``**`` crosses directories, as in ``services/blog/**``; one that begins
        with ``!`` takes out what the others let in. True where git cannot tell, and where there is no current tree.
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


class Redeliveries(Protocol):
    """One repository's webhook that leads to us, as the forge sees it."""

    @property
    def hook(self) -> str:
        """The name of our hook to which it delivers."""

    @property
    def words(self) -> str:
        """What a person would call it."""

    async def failed(self, since: float) -> Sequence[FailedDelivery]:
        """The pushes since then of which no attempt was taken, the oldest first. Raises ``ForgeFailed``."""

    async def ask_again(self, delivery: FailedDelivery) -> None:
        """Have the forge deliver it once more, soon. Raises ``ForgeFailed``."""


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
