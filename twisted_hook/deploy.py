"""The story of one deployment, in order: fetch, build, start, check, swap, tell.

Works over boundaries only and knows no tool by name. It decides what a failure means: what was running keeps
running, and the reason is written down.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from twisted_hook.boundaries import AppServer, Checkout, CommandRunner, DeploymentLog, Environments, Journal
from twisted_hook.commands import Ambient, deployment_context, step_environment
from twisted_hook.config import AppConfig, StepConfig
from twisted_hook.model import (
    Command,
    CommandResult,
    Commit,
    Deployment,
    Environment,
    JournalUnavailable,
    Launch,
    Outcome,
    Phase,
    Step,
    StepFailed,
    Tree,
)

T = TypeVar("T")


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

    def deploying(self, deployment: Deployment) -> Deploying:
        return Deploying(self, deployment)

    async def resume(self) -> bool:
        """Serve the current tree, after a start or a change of configuration. False if there is none yet."""
        adopted = self.server.adopt() if self.server is not None and self.server.launch is None else None
        tree = await self.checkout.current(self.runner)
        if self.server is not None and adopted is not None:
            if tree is None or tree.release != adopted.tree.release:
                await self.checkout.keep(self.runner, adopted.tree)  # it served, but could not be made current any more
            if not self.server.outdated:
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
        """Whether the app has steps, and no deployment has run them yet: an existing clone at the first start."""
        if self.app.build in ("auto", ()):
            return False
        return await self.journal.last(self.app.name) is None

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
        return step_environment(self.ambient, declared=self.declared(), context=context)

    def serving(self, env: Mapping[str, str], environment: Environment) -> dict[str, str]:
        """What the server sees: what the steps see, and its virtual environment first on PATH."""
        if environment.directory is None:
            return dict(env)
        path = f"{environment.directory / 'bin'}:{env['PATH']}"
        return {**env, "PATH": path, "VIRTUAL_ENV": str(environment.directory)}


class Deploying:
    """One deployment on its way. It records its own end: neither method raises anything but ``CancelledError``.

    A cancelled one stays without an outcome, so that the next start of hookdeploy takes it up.
    """

    _logger = Logger()

    def __init__(self, story: Story, deployment: Deployment) -> None:
        self._story = story
        self._deployment = deployment
        self._app = story.app
        self._log = story.open_log(deployment.id)
        self._previous: str | None = None
        self._commit = "the tip"
        """What is deployed, in words."""
        self._cut_off = False
        """It was begun before: its tree may be there, and half built."""
        self.ended = False
        """Its outcome is in the journal."""

    async def obtain(self) -> Tree | None:
        """Fetch and check out what is to be deployed; None if it has ended here. Wants the repository's lock."""
        tree = await self._recording(self._obtain())
        if tree is None:
            self._log.close()
        return tree

    async def release(self, tree: Tree) -> None:
        """Build the tree, start it, and put it in the place of what serves."""
        released = await self._recording(self._release(tree))
        if not released and not self._serves(tree):
            await self._recording(self._story.checkout.discard(self._story.runner, tree))
        self._log.close()

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        """Run a command with its output in the deployment's log; what the checkout and the environments run with."""
        self._log.heading(f"$ {command.name}")
        result = await self._story.runner.run(command, output=output or self._log.write)
        if not result.ok:
            self._log.heading(f"{command.name}: {result.verdict}")
        return result

    async def _obtain(self) -> Tree | None:
        checkout = self._story.checkout
        begun = await self._story.journal.begin(self._deployment.id, self._story.now())
        self._cut_off = begun.attempts > 1
        await self._enter(Phase.FETCHING)
        commit = await checkout.fetch(self)
        current = await checkout.current(self)
        self._previous = current.commit.revision if current else None
        await self._describe(commit, None)
        if current is not None and current.commit.revision == commit.revision and await self._runs(commit):
            await self._nothing_to_do(commit)
            return None
        tree = await checkout.take(self, commit)
        self._logger.info("Repository updated with commit {short}", short=tree.commit.revision[:6], app=self._app.name)
        if self._previous == tree.commit.revision and await self._runs(tree.commit):
            await self._nothing_to_do(tree.commit)
            return None
        await self._describe(tree.commit, tree.release)
        return tree

    async def _release(self, tree: Tree) -> bool:
        story = self._story
        await self._enter(Phase.BUILDING)
        env = story.env(tree, previous=self._previous, deployment=self._deployment.id)
        for step in () if self._app.build == "auto" else self._app.build:
            await self._step(step, tree, env)
        environment = await story.environments.prepare(self, tree, env)
        if story.server is None:
            await story.checkout.keep(self, tree)
        else:
            launch = Launch(tree, environment, story.serving(env, environment))
            await self._swap(story.server, launch)
        await story.environments.keep(self, environment)
        await self._finish(Outcome.DEPLOYED)
        return True

    async def _swap(self, server: AppServer, launch: Launch) -> None:
        """Serve the tree and keep it; if it cannot be kept, what served before serves again."""
        before = server.launch
        await server.swap(launch, self._entered)
        try:
            await self._story.checkout.keep(self, launch.tree)
        except CancelledError:
            raise
        except Exception:
            if before is not None:
                await server.swap(before, lambda phase: None)
            raise

    async def _step(self, step: StepConfig, tree: Tree, env: Mapping[str, str]) -> None:
        limit = self._app.step_timeout if step.timeout is None else step.timeout
        started = self._story.now()
        result = await self.run(Command(step.name, step.argv, {**env, **step.env}, cwd=tree.path, timeout=limit))
        name, command = self._story.shown(step.name), self._story.shown(" ".join(step.argv))
        done = Step(name, command, started, result.seconds, result.verdict)
        await self._story.journal.add_step(self._deployment.id, done)
        if not result.ok:
            raise StepFailed(f"step {step.name!r} failed: {result.verdict}", tail=result.tail)

    async def _runs(self, commit: Commit) -> bool:
        """Whether this very commit is what runs, and its deployment did not fail half-way."""
        if self._cut_off or await self._story.was_never_built():
            return False
        last = await self._story.journal.last(self._app.name)
        server = self._story.server
        known = last is not None and last.revision == commit.revision
        if last is not None and known and last.outcome is not Outcome.DEPLOYED:
            return False
        if server is None:
            return known
        launch = server.launch
        return (
            server.status.state == "serving" and launch is not None and launch.tree.commit.revision == commit.revision
        )

    def _serves(self, tree: Tree) -> bool:
        server = self._story.server
        return server is not None and server.launch is not None and server.launch.tree == tree

    async def _nothing_to_do(self, commit: Commit) -> None:
        await self._finish(Outcome.UNCHANGED, f"{commit.revision[:7]} runs already")

    async def _recording(self, work: Coroutine[Any, Any, T]) -> T | None:
        try:
            return await work
        except CancelledError:
            self._log.heading("hookdeploy stops; the next start takes this up again")
            self._log.close()
            raise
        except StepFailed as failed:
            await self._finish(Outcome.FAILED, failed.reason)
        except OSError as error:
            await self._finish(Outcome.FAILED, f"{error.strerror}: {error.filename}")
        except JournalUnavailable as problem:
            await self._finish(Outcome.FAILED, f"the journal: {problem}")
        except Exception as fault:  # noqa: BLE001 - a bug ends its deployment, and the lane lives on
            self._logger.failure("{app}: a fault in hookdeploy", app=self._app.name)
            await self._finish(Outcome.FAILED, f"{fault!r}; hookdeploy's own log has the traceback")
        return None

    async def _finish(self, outcome: Outcome, reason: str = "") -> None:
        reason = self._story.shown(reason)
        self._log.heading(f"{outcome}{': ' if reason else ''}{reason}")
        self._logger.emit(
            LogLevel.error if outcome is Outcome.FAILED else LogLevel.info,
            "{app}: deployment {deployment} of {commit} {outcome}{reason}",
            app=self._app.name,
            deployment=self._deployment.id,
            commit=self._commit,
            outcome=str(outcome),
            reason=f": {reason}" if reason else "",
        )
        journal, deployment, now = self._story.journal, self._deployment.id, self._story.now()
        try:
            if outcome is Outcome.DEPLOYED:
                await journal.advance(deployment, Phase.DONE, now)
            await journal.finish(deployment, outcome, now, reason=reason)
            self.ended = True
        except JournalUnavailable as problem:
            self._logger.error("{app}: the journal: {problem}", app=self._app.name, problem=str(problem))

    async def _enter(self, phase: Phase) -> None:
        self._log.heading(f"-- {phase}")
        await self._story.journal.advance(self._deployment.id, phase, self._story.now())

    def _entered(self, phase: Phase) -> None:
        """As ``_enter``, for callers that do not wait; the journal keeps the order."""
        Deferred.fromCoroutine(self._enter(phase)).addErrback(self._not_written)

    def _not_written(self, failure: Failure) -> None:
        if failure.check(JournalUnavailable) is None:
            self._logger.failure("{app}: writing a phase", failure, app=self._app.name)
        else:
            self._logger.error("{app}: the journal: {problem}", app=self._app.name, problem=str(failure.value))

    async def _describe(self, commit: Commit, release: str | None) -> None:
        self._commit = self._story.shown(f"{commit.revision[:7]} {commit.subject!r}")
        await self._story.journal.describe(self._deployment.id, commit=commit, previous=self._previous, release=release)
