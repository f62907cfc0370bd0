"""What a check of ``hookdeploy doctor`` comes to: words for a person, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How well it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them; ``remedy`` is empty where there is nothing to do."""

    check: str
    status: Status
    finding: str
    remedy: str = ""


def ok(check: str, finding: str) -> Finding:
    return Finding(check, Status.OK, finding)


def warning(check: str, finding: str, remedy: str) -> Finding:
    return Finding(check, Status.WARNING, finding, remedy)


def problem(check: str, finding: str, remedy: str) -> Finding:
    return Finding(check, Status.PROBLEM, finding, remedy)


def skipped(check: str, reason: str, remedy: str = "") -> Finding:
    """It could not be looked at, or there is nothing to look at."""
    return Finding(check, Status.SKIPPED, reason, remedy)
