"""What all deployments of one app share: its tools, what its children see, what serves after a start, and the way back.

Works over boundaries only and knows no tool by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import DeferredLock

from twisted_hook.boundaries import AppServer, Checkout, CommandRunner, DeploymentLog, Environments, Journal
from twisted_hook.commands import Ambient, deployment_context, step_environment
from twisted_hook.config import AppConfig
from twisted_hook.model import (
    Deployment,
    Environment,
    JournalUnavailable,
    Launch,
    NoRoom,
    Outcome,
    Steering,
    StepFailed,
    Tree,
)

SKIPS = "has a message that says "
"""In words, that a commit asks not to be deployed: which words it has stands behind."""


@dataclass(frozen=True)
class Story:
    """What every deployment of one app needs."""

    app: AppConfig
    journal: Journal
    runner: CommandRunner
    checkout: Checkout
    environments: Environments
    server: AppServer | None
    open_log: Callable[[str], DeploymentLog]
    """The log of a deployment, by its id."""
    declared: Callable[[], Mapping[str, str]]
    """What the app declares for its environment, read anew. Raises ``StepFailed``."""
    ambient: Ambient
    now: Callable[[], float]
    shown: Callable[[str], str]
    """Text from outside with its secrets masked and its control characters made harmless."""
    home: Path | None = None
    """That of the account as which steps and server run, where it is not ours."""
    ask_for_room: Callable[[], None] = lambda: None
    """Raises ``NoRoom`` if the disk is too full to begin."""
    try_again_later: Callable[[], None] = lambda: None
    """Have the remote looked at until what could not be deployed for want of room was."""
    turn_to_build: Callable[[str], AbstractAsyncContextManager[None]] = lambda repository: nullcontext()
    """Waits, and holds the others up, while a release of this repository is built."""

    async def resume(self, lock: DeferredLock) -> bool:
        """Serve the current tree, after a start or a change of configuration. False if there is none yet.

        ``lock`` is the repository's. What runs still is adopted before it is waited for, and nothing starts within it.
        """
        adopted = self.server.adopt() if self.server is not None and self.server.launch is None else None
        async with lock:
            tree = await self.checkout.recover(self.runner, adopted.tree if adopted is not None else None)
        if self.server is not None and adopted is not None:
            if not self.server.outdated and self._sees_what_is_declared(adopted):
                return True
            tree = adopted.tree
        if tree is None:
            return False
        if self.server is not None:
            env = self.env(tree, previous=None, deployment=await self._last_id())
            environment = await self.environments.prepare(self.runner, tree, env)
            launch = Launch(tree, environment, self.serving(env, environment))
            if self.server.launch is None:
                await self.server.start(launch)
            else:
                await self.server.swap(launch, lambda phase: None)
        return True

    async def was_never_built(self) -> bool:
        """Whether the app has steps, and no deployment has run them yet: an existing clone at the first start.

        No release becomes the current one before it was built.
        """
        if self.app.mode == "release" or self.app.build in ("auto", ()):
            return False
        return await self.journal.last(self.app.name) is None

    async def steering(self) -> Steering:
        return await self.journal.steering(self.app.name)

    async def objection(self, revision: str) -> str:
        """Why this revision is not deployed unless a person asks for it; empty if nothing is held against it.

        It was put back, by a person or because it failed on probation, or nobody knows how far it has migrated.
        """
        last = await self.journal.last_about(self.app.name, revision)
        if last is None or (last.outcome is Outcome.DEPLOYED and last.revision == revision):
            return ""
        return "was cut off in its migration" if last.outcome is Outcome.INTERRUPTED else "was put back"

    @property
    def unaffected(self) -> str:
        """In words, that a commit changes no file that the app is about."""
        return self.shown(f"changes nothing of {', '.join(self.app.paths)} since ")

    def would_spare(self, reason: str) -> bool:
        """Whether an unchanged deployment with this reason had a commit that need not be deployed, and still need not.

        What the app is about may have been configured otherwise since.
        """
        return SKIPS in reason or self.unaffected in reason

    @property
    def lacks_room(self) -> bool:
        """Whether the disk is too full for anything to be begun."""
        try:
            self.ask_for_room()
        except NoRoom:
            return True
        return False

    async def way_back(self, wanted: str | None = None) -> Tree | None:
        """The kept release of that name, or else the newest good one before the current; None if there is none.

        A commit that was deployed again is no way back from itself.
        """
        kept = await self.checkout.kept(self.runner)
        if wanted is not None:
            return next((tree for tree in kept if tree.release == wanted), None)
        current = self.server.launch.tree if self.server is not None and self.server.launch else None
        current = current or await self.checkout.current(self.runner)
        names = [tree.release for tree in kept]
        place = names.index(current.release) + 1 if current is not None and current.release in names else 0
        for tree in kept[place:]:
            same = current is not None and tree.commit.revision == current.commit.revision
            if not same and not await self.objection(tree.commit.revision):
                return tree
        return None

    def cut_off_in_migration(self, deployment: Deployment) -> str:
        """What a person must know of a deployment that hookdeploy has not brought through its migration."""
        ended = {step.name for step in deployment.steps if step.status == "ok"}
        names = [self.shown(step.name) for step in self.app.migrate]
        done = ", ".join(name for name in names if name in ended)
        unknown = next((name for name in names if name not in ended), "the migration")
        return (
            f"it was cut off while {unknown!r} migrated{f' (ended: {done})' if done else ''}, and is not run again by "
            f"itself. See what it has done; then push a newer commit, or run: hookdeploy deploy {self.app.name}"
        )

    def _sees_what_is_declared(self, launch: Launch) -> bool:
        """As far as that can be told; what hookdeploy adds to it may differ from start to start."""
        try:
            declared = self.declared()
        except StepFailed:
            return True
        return _without_ours(launch.env) == _without_ours(declared)

    async def _last_id(self) -> str:
        try:
            last = await self.journal.last(self.app.name)
        except JournalUnavailable:  # what cannot be remembered can still be served
            return ""
        return last.id if last else ""

    def env(self, tree: Tree, *, previous: str | None, deployment: str) -> dict[str, str]:
        """What the steps of a deployment see."""
        context = deployment_context(
            app=self.app.name,
            revision=tree.commit.revision,
            previous=previous,
            branch=self.app.branch,
            release=tree.release,
            deployment=deployment,
        )
        return step_environment(self.ambient, declared=self.declared(), context=context, home=self.home)

    def serving(self, env: Mapping[str, str], environment: Environment) -> dict[str, str]:
        """What the server sees: what the steps see, and its virtual environment first on PATH."""
        if environment.directory is None:
            return dict(env)
        path = f"{environment.directory / 'bin'}:{env['PATH']}"
        return {**env, "PATH": path, "VIRTUAL_ENV": str(environment.directory)}


def _without_ours(env: Mapping[str, str]) -> dict[str, str]:
    ours = {"PATH", "HOME", "LANG", "VIRTUAL_ENV"}
    return {name: value for name, value in env.items() if name not in ours and not name.startswith("HOOKDEPLOY_")}
