"""The API's answers as hookdeploy's own words: what its JSON tells of deployments, deliveries and apps.

Only converts; what an answer has that is not known here is left out, as a newer server may tell more.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from twisted_hook.advice import Present
from twisted_hook.cli.follow import Answer
from twisted_hook.model import Delivery, Deployment


def deployment_of(answer: Answer) -> Deployment:
    """The deployment of which the API tells."""
    times = {key: _seconds(answer[key]) for key in ("queued_at", "started_at", "finished_at")}
    steps = [{**step, "started_at": _seconds(step["started_at"])} for step in answer["steps"]]
    phases = [(entered["phase"], _seconds(entered["at"])) for entered in answer["phases"]]
    return msgspec.convert({**answer, **times, "steps": steps, "phases": phases}, Deployment)


def delivery_of(answer: Answer) -> Delivery:
    """The delivery of which the API tells."""
    return msgspec.convert({**answer, "received_at": _seconds(answer["received_at"])}, Delivery)


def present_of(app: Answer, user: str | None = None) -> Present:
    """What an app is at, as the API tells it; ``user`` is as whom its server works."""
    server = app["server"] or {}
    return Present(
        revision=app["revision"],
        subject=app["subject"],
        state=server.get("state"),
        problem=server.get("reason") or "",
        paused=app["paused"],
        pinned=app["pinned"],
        repository=app.get("repository"),
        user=user,
    )


def _seconds(at: str | None) -> float | None:
    return None if at is None else datetime.fromisoformat(at).timestamp()
