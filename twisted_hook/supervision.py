"""The life of one generation of an app's server, as a state machine.

booting → healthy → serving → draining → gone; whatever ends before it serves has failed. Between its first request and
its service there may be a probation, in which another one still serves beside it: found wanting, it drains. Pure: what
it decides is carried out by the ``Hands`` it is given, and its time is an ``IReactorTime``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from automat import TypeMachineBuilder
from automat._typed import TypedState  # automat names the type of a state nowhere else
from twisted.internet.interfaces import IDelayedCall, IReactorTime


@dataclass(frozen=True, slots=True)
class Terms:
    """What a probation asks for."""

    seconds: float
    deaths: int
    """So many deaths of workers end it; 0 does not count them."""
    errors: int
    """So many answers of 500 and above end it; 0 does not count them."""


class Hands(Protocol):
    """What a generation's machine can do, and whom it tells."""

    def open_gate(self) -> None:
        """Let the workers accept."""

    def terminate(self) -> None:
        """Ask the server to finish what it has begun, and to end."""

    def kill(self) -> None:
        """End the server's whole session at once."""

    def checking(self) -> None:
        """It has read its configuration; its workers boot now, and look at the app."""

    def serving(self) -> None:
        """Every worker accepts."""

    def failed(self, reason: str) -> None:
        """It will not serve; its process may still be on its way out."""

    def proven(self) -> None:
        """Its probation is over, and nothing was found against it."""

    def wanting(self, reason: str) -> None:
        """It has not passed its probation, and drains, or has gone."""

    def gone(self, how: str) -> None:
        """Its process has exited. Always the last word."""


class Life(Protocol):
    """What can happen to a generation."""

    def spawned(self) -> None:
        """The server's process has been started."""

    def spawned_without_gate(self) -> None:
        """The server's process has been started, and nothing keeps it from accepting as soon as it can."""

    def starting(self, workers: int) -> None:
        """gunicorn has read its configuration: this many workers will boot."""

    def worker_not_loaded(self, pid: int, problem: str) -> None:
        """A worker could not load the app, and ends."""

    def worker_checked(self, pid: int, problem: str | None) -> None:
        """A worker has booted and asked the app for its health."""

    def worker_booted(self, pid: int) -> None:
        """A worker has passed the gate and accepts."""

    def worker_exited(self, pid: int) -> None: ...

    def error_answered(self) -> None:
        """A worker has answered somebody's request with 500 or above."""

    def watch(self, terms: Terms) -> None:
        """Its probation begins: it serves already, and another one beside it."""

    def watched_enough(self) -> None:
        """Its probation is over: the time is up, or it serves alone."""

    def found_wanting(self, reason: str) -> None:
        """The machine's own word: its probation has failed."""

    def exited(self, how: str) -> None:
        """The master process has exited."""

    def boot_timeout(self) -> None: ...

    def drain(self) -> None:
        """It is to finish its requests and end."""

    def drain_timeout(self) -> None: ...

    def unfit(self, reason: str) -> None:
        """It must not serve, for a reason that was found before the gate opened."""

    def all_checked(self) -> None:
        """The machine's own word: no worker is missing."""

    def all_accept(self) -> None:
        """The machine's own word: no worker is missing at the gate's other side."""


@dataclass
class Generation:
    """What the states share: the workers seen so far, the limits in seconds, and the timer of the present state."""

    hands: Hands
    clock: IReactorTime
    boot_limit: float
    drain_limit: float
    workers: int = 1
    good: set[int] = field(default_factory=set)
    accepting: set[int] = field(default_factory=set)
    terms: Terms | None = None
    """Those of its probation."""
    deaths: int = 0
    errors: int = 0
    """Answers of 500 and above since the gate was opened."""
    cause: str = ""
    """Why a worker is about to end, if it has said so."""
    timer: IDelayedCall | None = None

    def shortfall(self) -> str | None:
        """What its probation holds against it, or None."""
        if self.terms is None:
            return None
        within = f"in the first {self.terms.seconds:g} s"
        if 0 < self.terms.deaths <= self.deaths:
            return f"a worker died {within}" if self.deaths == 1 else f"{self.deaths} workers died {within}"
        if 0 < self.terms.errors <= self.errors:
            answers = "1 answer" if self.errors == 1 else f"{self.errors} answers"
            return f"{answers} of 500 and above {within}"
        return None

    def stop_timer(self) -> None:
        if self.timer is not None and self.timer.active():
            self.timer.cancel()


State: TypeAlias = TypedState[Life, Generation]

_builder = TypeMachineBuilder(Life, Generation)
new = _builder.state("new")
booting = _builder.state("booting")
healthy = _builder.state("healthy")
serving = _builder.state("serving")
probation = _builder.state("probation")
draining = _builder.state("draining")
failed = _builder.state("failed")
gone = _builder.state("gone")


@new.upon(Life.spawned).to(booting)
def _boot(life: Life, generation: Generation) -> None:
    generation.timer = generation.clock.callLater(generation.boot_limit, life.boot_timeout)


@new.upon(Life.spawned_without_gate).to(healthy)
def _boot_without_gate(life: Life, generation: Generation) -> None:
    _boot(life, generation)


@booting.upon(Life.starting).loop()
def _count(life: Life, generation: Generation, workers: int) -> None:
    generation.workers = workers
    generation.hands.checking()


@booting.upon(Life.worker_checked).loop()
def _check(life: Life, generation: Generation, pid: int, problem: str | None) -> None:
    if problem is not None:
        life.unfit(f"the health check failed: {problem}")
        return
    generation.good.add(pid)
    if len(generation.good) >= generation.workers:
        life.all_checked()


@booting.upon(Life.all_checked).to(healthy)
def _open(life: Life, generation: Generation) -> None:
    generation.hands.open_gate()


@healthy.upon(Life.worker_booted).loop()
def _accept(life: Life, generation: Generation, pid: int) -> None:
    generation.accepting.add(pid)
    if len(generation.accepting) >= generation.workers:
        life.all_accept()


@healthy.upon(Life.all_accept).to(serving)
def _serve(life: Life, generation: Generation) -> None:
    generation.stop_timer()
    generation.hands.serving()


@serving.upon(Life.watch).to(probation)
def _watch(life: Life, generation: Generation, terms: Terms) -> None:
    generation.terms = terms
    generation.timer = generation.clock.callLater(terms.seconds, life.watched_enough)
    _judge(life, generation)


@healthy.upon(Life.error_answered).loop()
@probation.upon(Life.error_answered).loop()
def _count_error(life: Life, generation: Generation) -> None:
    generation.errors += 1
    _judge(life, generation)


@probation.upon(Life.worker_exited).loop()
def _count_death(life: Life, generation: Generation, pid: int) -> None:
    generation.deaths += 1
    _judge(life, generation)


@probation.upon(Life.worker_checked).loop()
def _check_again(life: Life, generation: Generation, pid: int, problem: str | None) -> None:
    if problem is not None:
        life.found_wanting(f"the health check failed: {problem}")


def _judge(life: Life, generation: Generation) -> None:
    shortfall = generation.shortfall()
    if shortfall is not None:
        life.found_wanting(shortfall)


@probation.upon(Life.watched_enough).to(serving)
def _prove(life: Life, generation: Generation) -> None:
    generation.stop_timer()
    generation.hands.proven()


# Before the gate opens nobody's request can be inside: what fails is killed.


def _abort(generation: Generation, reason: str) -> None:
    generation.stop_timer()
    generation.hands.kill()
    generation.hands.failed(reason)


@booting.upon(Life.unfit).to(failed)
@healthy.upon(Life.unfit).to(failed)  # one without a gate, in its very first moment
def _unfit(life: Life, generation: Generation, reason: str) -> None:
    _abort(generation, reason)


@booting.upon(Life.worker_not_loaded).loop()
def _not_loaded(life: Life, generation: Generation, pid: int, problem: str) -> None:
    """Its exit follows; until then gunicorn writes the traceback."""
    generation.cause = f"the app could not be loaded: {problem}"


@booting.upon(Life.worker_exited).to(failed)
def _worker_lost(life: Life, generation: Generation, pid: int) -> None:
    _abort(generation, generation.cause or "a worker died while it was starting")


@booting.upon(Life.boot_timeout).to(failed)
def _too_slow(life: Life, generation: Generation) -> None:
    _abort(generation, _slow(generation, len(generation.good)))


@booting.upon(Life.drain).to(failed)
def _unwanted(life: Life, generation: Generation) -> None:
    _abort(generation, "it was stopped before it had started")


@booting.upon(Life.exited).to(gone)
@healthy.upon(Life.exited).to(gone)
def _stillborn(life: Life, generation: Generation, how: str) -> None:
    generation.stop_timer()
    generation.hands.failed(generation.cause or f"the server ended while it was starting: {how}")
    generation.hands.gone(how)


# Once the gate is open a worker may hold somebody's request: what fails is drained.


def _retire(life: Life, generation: Generation) -> None:
    generation.stop_timer()
    generation.hands.terminate()
    generation.timer = generation.clock.callLater(generation.drain_limit, life.drain_timeout)


@healthy.upon(Life.worker_exited).to(draining)
def _worker_lost_at_the_gate(life: Life, generation: Generation, pid: int) -> None:
    _retire(life, generation)
    generation.hands.failed("a worker died as it began to accept")


@healthy.upon(Life.boot_timeout).to(draining)
def _too_slow_at_the_gate(life: Life, generation: Generation) -> None:
    _retire(life, generation)
    generation.hands.failed(_slow(generation, len(generation.accepting)))


@healthy.upon(Life.drain).to(draining)
def _unwanted_at_the_gate(life: Life, generation: Generation) -> None:
    _retire(life, generation)
    generation.hands.failed("it was stopped before it had started")


@serving.upon(Life.drain).to(draining)
def _drain(life: Life, generation: Generation) -> None:
    _retire(life, generation)


@probation.upon(Life.found_wanting).to(draining)
def _dismiss(life: Life, generation: Generation, reason: str) -> None:
    _retire(life, generation)
    generation.hands.wanting(reason)


@probation.upon(Life.drain).to(draining)
def _unwanted_on_probation(life: Life, generation: Generation) -> None:
    _retire(life, generation)
    generation.hands.wanting("it was stopped during its probation")


@probation.upon(Life.exited).to(gone)
def _dead_on_probation(life: Life, generation: Generation, how: str) -> None:
    generation.stop_timer()
    generation.hands.wanting(f"the server ended by itself: {how}")
    generation.hands.gone(how)


@draining.upon(Life.drain_timeout).loop()
def _drained_enough(life: Life, generation: Generation) -> None:
    generation.hands.kill()


@serving.upon(Life.exited).to(gone)
@draining.upon(Life.exited).to(gone)
@failed.upon(Life.exited).to(gone)
def _gone(life: Life, generation: Generation, how: str) -> None:
    generation.stop_timer()
    generation.hands.gone(how)


# What changes nothing: a worker that gunicorn replaces while it serves passes the open gate by itself, reports may
# arrive after the end they announce, and whoever wants it gone may say so twice.
booting.upon(Life.worker_booted).loop().returns(None)
healthy.upon(Life.starting).loop().returns(None)
healthy.upon(Life.worker_checked).loop().returns(None)
booting.upon(Life.error_answered).loop().returns(None)
probation.upon(Life.starting).loop().returns(None)
probation.upon(Life.worker_booted).loop().returns(None)
for _state in (healthy, probation, serving, draining, failed, gone):
    _state.upon(Life.worker_not_loaded).loop().returns(None)
for _state in (serving, draining, failed, gone):
    _state.upon(Life.starting).loop().returns(None)
    _state.upon(Life.worker_checked).loop().returns(None)
    _state.upon(Life.worker_booted).loop().returns(None)
    _state.upon(Life.worker_exited).loop().returns(None)
    _state.upon(Life.error_answered).loop().returns(None)
    _state.upon(Life.watched_enough).loop().returns(None)
for _state in (draining, failed, gone):
    _state.upon(Life.drain).loop().returns(None)


def _slow(generation: Generation, ready: int) -> str:
    return f"{ready} of {generation.workers} workers were ready after {generation.boot_limit:g} s (health_timeout)"


live = _builder.build()
"""Makes the life of one ``Generation``: give it one, and the state it is in; get a ``Life``."""
