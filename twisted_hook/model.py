"""The words of hookdeploy: what a delivery, a push, a deployment and a release are.

Frozen values only. This module imports nothing of ours and never touches a file, a clock or a reactor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Phase(StrEnum):
    """Where a deployment is, in the order in which it passes them."""

    QUEUED = "queued"
    FETCHING = "fetching"
    BUILDING = "building"
    MIGRATING = "migrating"
    STARTING = "starting"
    CHECKING = "checking"
    SWAPPING = "swapping"
    PROBATION = "probation"
    DONE = "done"


class Outcome(StrEnum):
    """How a deployment ended."""

    DEPLOYED = "deployed"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled_back"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    UNCHANGED = "unchanged"


class Trigger(StrEnum):
    """What asked for a deployment."""

    PUSH = "push"
    POLL = "poll"
    MANUAL = "manual"
    ROLLBACK = "rollback"
    REPLAY = "replay"
    START = "start"


class Verdict(StrEnum):
    """What became of a genuine delivery; the ``status`` of the answer to it."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Push:
    """A genuine push of one ref, as the forge tells it. ``after`` is None for a deletion."""

    repository: str
    """What the forge calls the repository, e.g. ``acme/blog``."""
    ref: str
    """The full ref name, e.g. ``refs/heads/main``."""
    after: str | None
    """The commit that the ref names now, 40 or 64 lower-case hexadecimal digits."""
    default_branch: str | None = None
    """The repository's default branch, where the forge tells it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A genuine webhook message: who sent it, and what it says."""

    guid: str
    """The forge's own id of the delivery; the digest of the body where it sends none."""
    name: str
    """The event's name as the forge writes it, e.g. ``push``."""
    pushes: tuple[Push, ...] = ()
    """The refs that it tells of, in its own order; one that tells of none asks for nothing, such as a ping."""
    reason: str = ""
    """Why it asks for nothing, in words."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One genuine webhook message as the journal keeps it."""

    id: str
    hook: str
    guid: str
    event: str
    verdict: Verdict
    reason: str
    pushes: tuple[Push, ...]
    received_at: float
    """Seconds since the epoch, UTC."""
    deployments: tuple[str, ...] = ()
    """Ids of the deployments that it led to, oldest first."""


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A genuine message on its way into the journal."""

    hook: str
    message: Message
    digest: str
    """SHA-256 of the raw body, hexadecimal."""
    received_at: float
    apps: tuple[str, ...]
    """The apps that it is for; none means that it is ignored, for ``reason``."""
    reason: str = ""
    secret: str = ""
    """The name of the secret that has signed it; nothing of the secret can be told from that."""


@dataclass(frozen=True, slots=True)
class Verified:
    """That a hook's secret has verified a delivery: the last one that it has, a repeated one included."""

    hook: str
    secret: str
    """The secret's name, as in ``NewDelivery``."""
    at: float
    """Seconds since the epoch, UTC."""
    delivery: str
    """The delivery's id."""


@dataclass(frozen=True, slots=True)
class FailedDelivery:
    """A push that the forge could not deliver, as the forge tells it."""

    guid: str
    """The id that every attempt at it carries, and so the one that it would have in the journal."""
    id: str
    """By what the forge's API knows the newest attempt."""
    delivered_at: float
    """When that attempt was made; seconds since the epoch, UTC."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A row of the journal that could not be read, put aside so that it stops neither the others nor a start."""

    id: str
    kind: str
    """``delivery`` or ``deployment``."""
    problem: str
    parked_at: float
    """Seconds since the epoch, UTC."""
    row: str
    """What the row held, as a JSON object."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a deployment that has ended."""

    name: str
    command: str
    started_at: float
    seconds: float
    status: str
    """``ok``, or what went wrong: ``exit 1``, ``signal 9``, ``timeout after 2 s``, ``could not start: …``."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One turn of one app: what asked for it, how far it came, how it ended. Times are seconds since the epoch, UTC."""

    id: str
    app: str
    trigger: Trigger
    phase: Phase
    queued_at: float
    attempts: int = 0
    """How many times a hookdeploy process has begun to work on it."""
    wanted: str | None = None
    """What a person asked for: a revision, or for a rollback a release. None leaves the choice to us."""
    migrated: str | None = None
    """The revision for which its migration has ended; it is not run again for that one."""
    revision: str | None = None
    previous: str | None = None
    subject: str | None = None
    author: str | None = None
    release: str | None = None
    outcome: Outcome | None = None
    reason: str = ""
    """Why it was made, where that says more than its trigger; once it has ended in another way, why it did."""
    transient: bool = False
    """What it failed for lies outside of what was deployed and may pass by itself, such as a full disk."""
    started_at: float | None = None
    finished_at: float | None = None
    superseded_by: str | None = None
    steps: tuple[Step, ...] = ()
    phases: tuple[tuple[Phase, float], ...] = ()
    """Each phase that it has entered and when, in order."""
    delivery: str | None = None
    """The id of the delivery that has led to it."""


@dataclass(frozen=True, slots=True)
class Steering:
    """How a person holds an app back."""

    paused: bool = False
    """What arrives is written down and waits; the newest is deployed when the app is resumed."""
    pinned: bool = False
    """The current release stays: what arrives is written down and not deployed."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The journal's answer to a delivery: what to tell the sender, and what to put into the lanes."""

    verdict: Verdict
    delivery: str
    deployments: tuple[Deployment, ...]
    """For a new delivery those it led to; for a duplicate those that stand for it now."""
    queued: tuple[Deployment, ...]
    """Those of ``deployments`` that this very delivery made, so that they are to be put into their lanes."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that git has resolved: its id, and how a person would recognise it."""

    revision: str
    subject: str
    author: str
    skips: str = ""
    """The words of its message that ask that it not be deployed, e.g. ``[skip deploy]``; empty if it has none."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory that holds the whole of one commit, and the release id under which it is known."""

    path: Path
    commit: Commit
    release: str


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run: nothing of its environment is inherited."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None = None
    timeout: float = 900.0
    """Seconds after which the whole process group is ended."""
    user: str | None = None
    """The account that it runs as, if not ours; that needs root."""
    nice: int = 0
    """How much it steps back for others, as nice(1) says it: 0 not at all, 19 most."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended; not an exception, whatever the end."""

    command: Command
    status: int | None
    """The exit status; None if a signal ended it or it never started."""
    signal: int | None
    timed_out: bool
    seconds: float
    stdout: bytes
    """The first 256 KiB of standard output."""
    tail: str
    """The last lines of standard output and standard error together, cleaned of control bytes."""
    could_not_start: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 0 and not self.timed_out

    @property
    def verdict(self) -> str:
        """The end in a few words, as a person would put it."""
        if self.could_not_start:
            return f"could not start: {self.could_not_start}"
        if self.timed_out:
            return f"timeout after {self.command.timeout:g} s"
        if self.signal is not None:
            return f"signal {self.signal}"
        return "ok" if self.status == 0 else f"exit {self.status}"


@dataclass(frozen=True, slots=True)
class Environment:
    """Where an app's Python and its dependencies are."""

    interpreter: Path
    directory: Path | None = None
    """The virtual environment; None where the app has none and runs under hookdeploy's own interpreter."""
    gunicorn: str | None = None
    """The version of the gunicorn that it brings, if it does."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What an app server needs to know to start one generation."""

    tree: Tree
    environment: Environment
    env: Mapping[str, str]
    """The whole environment of the server."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How an app's server is, for people."""

    state: str
    """``down``, ``starting``, ``serving``, ``restarting`` or ``stopped``."""
    since: float
    """Seconds since the epoch, UTC."""
    pid: int | None = None
    deaths: int = 0
    """How often it died in a row without having served steadily in between."""
    reason: str = ""


class Refused(Exception):
    """The caller is wrong; a door turns it into an answer with this HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class StepFailed(Exception):
    """An expected failure that ends a deployment: in words for a person, with the last lines of what was said."""

    def __init__(self, summary: str, *, tail: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.tail = tail

    @property
    def reason(self) -> str:
        return f"{self.summary}\n{self.tail}".rstrip()


class NoRoom(StepFailed):
    """The disk is full: what failed for that may be tried again when there is room."""


class ProbationFailed(StepFailed):
    """What was deployed met requests, was found wanting, and has given its place back."""


class JournalUnavailable(Exception):
    """The journal could not commit; nothing of the call was written."""


class NoSuchRow(JournalUnavailable):
    """The journal has no such row, or has it no more: nothing can ever be written about it."""


class ForgeFailed(Exception):
    """A forge's API could not be reached, refused, or gave what cannot be understood; in words for a person."""
