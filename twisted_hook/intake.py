"""The intake: the Klein application that takes deliveries in, and answers when the journal has them on disk.

It judges and writes down; it never deploys anything, and nothing that it has begun to write is undone by a sender who
hangs up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import sha256
from typing import cast

from klein import Klein
from klein.resource import KleinResource
from msgspec.json import encode
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import ACCEPTED
from twisted.web.server import NOT_DONE_YET

from twisted_hook.boundaries import Journal
from twisted_hook.forges import FORGES
from twisted_hook.hooks import FORM, JSON, Hook, Network, media_type
from twisted_hook.model import (
    Deployment,
    JournalUnavailable,
    Message,
    NewDelivery,
    Receipt,
    Refused,
    Trigger,
    Verdict,
)
from twisted_hook.site import GuardedRequest

HEALTH = b"/healthz"


class Intake:
    """``POST`` to each hook's path, and ``GET /healthz``."""

    app = Klein()
    log = Logger()

    def __init__(
        self,
        journal: Journal,
        submit: Callable[[Deployment], None],
        hooks: Iterable[Hook],
        now: Callable[[], float],
        *,
        missed: Callable[[Collection[str]], None] = lambda apps: None,
        repeated: Callable[[Collection[str]], None] = lambda apps: None,
        published: Callable[[Hook], Sequence[Network] | None] = lambda hook: None,
        shut_out: Callable[[Hook], None] = lambda hook: None,
    ) -> None:
        """``submit`` puts a deployment into its lane; ``now`` tells the seconds since the epoch, UTC.

        ``missed`` is told for which apps a delivery could not be taken; ``repeated`` for which one came again after all
        that it had led to: it may be news, as a branch that is pushed to and fro says twice the same, word for word.
        ``published`` gives the networks that a hook's forge delivers from, None where they are not known; ``shut_out``
        is told of a hook at which somebody was refused for his address.
        """
        self._journal = journal
        self._submit = submit
        self._now = now
        self._missed = missed
        self._repeated = repeated
        self._published = published
        self._shut_out = shut_out
        self.replace(hooks)

    def replace(self, hooks: Iterable[Hook]) -> None:
        """Serve these hooks from now on. Raises ``ValueError``, and changes nothing, if two share a path."""
        table: dict[bytes, Hook] = {}
        for hook in hooks:
            path = hook.path.encode()
            if path in table or path == HEALTH:
                raise ValueError(f"the path {hook.path} is taken")
            table[path] = hook
        self._hooks = table

    def screen(self, request: GuardedRequest) -> None:
        """Refuse a request, where that is possible, before its body is read."""
        if request.path == HEALTH:
            _screen_health(request)
            return
        hook = self._hook(request)
        if request.method != b"POST":
            request.setHeader(b"Allow", b"POST")
            raise Refused(405, "a method other than POST")
        published = self._published(hook)
        shut_out = [sender for sender in request.senders if not hook.admits(sender, published)]
        if shut_out:
            self._shut_out(hook)
            addresses = " or ".join(sorted(map(str, shut_out)))
            raise Refused(403, f"{addresses} is not in only_from of {hook.name}")
        if any(coding.lower() != b"identity" for coding in request.header(b"content-encoding")):
            raise Refused(415, "an encoded body")
        if media_type(request.header) not in (JSON, FORM):
            raise Refused(415, "a body that is neither JSON nor a form")
        FORGES[hook.forge].screen(request.header, allow_sha1=hook.allow_sha1)

    def resource(self) -> KleinResource:
        return ScreenedResource(self.app)

    @app.route("/healthz", methods=["GET"])
    def health(self, request: GuardedRequest) -> bytes:
        body = request.answer(b"ok", b"text/plain")
        return b"" if request.method == b"HEAD" else body

    @app.route("/<path:hook>", methods=["POST"])
    async def receive(self, request: GuardedRequest) -> bytes:
        """A delivery: 202 as soon as it is on disk."""
        try:
            new = self._judge(request)
            receipt = await self._record(new)
        except Refused as refused:
            return request.refuse(refused)
        request.accept(receipt.verdict.value, new.message.name, new.hook)
        request.setResponseCode(ACCEPTED)
        return request.answer(encode(_told(receipt, new.reason)))

    async def replay(self, id: str) -> tuple[Deployment, ...]:
        """Deploy once more what a stored delivery is for by now. Raises ``Refused`` if it is for nobody."""
        delivery = await self._journal.delivery(id)
        if delivery is None:
            raise Refused(404, f"there is no delivery {id}; its id is the one that the forge was answered with")
        hook = next((hook for hook in self._hooks.values() if hook.name == delivery.hook), None)
        if hook is None:
            raise Refused(409, f"the hook {delivery.hook} is not configured any more")
        try:
            audience = hook.audience(Message(delivery.guid, delivery.event, delivery.pushes, delivery.reason))
        except Refused as refused:
            raise Refused(409, f"it is for nobody: {refused.reason}") from None
        if not audience.apps:
            raise Refused(409, f"it is for nobody: {audience.reason}")
        queued = []
        for app in audience.apps:
            queued.append(await self._journal.enqueue(app, Trigger.REPLAY, delivery=id))
            self._put_into_lanes(queued[-1:])  # at once: the journal may not take the next one
        return tuple(queued)

    def _hook(self, request: GuardedRequest) -> Hook:
        hook = self._hooks.get(request.path)
        if hook is None:
            raise Refused(404, "no such path")
        return hook

    def _judge(self, request: GuardedRequest) -> NewDelivery:
        """Believe the request, read it, and find whom it is for, or refuse it."""
        hook, body, now = self._hook(request), request.body, self._now()
        forge = FORGES[hook.forge]
        proof = forge.verify(request.header, body, secrets=hook.keys, allow_sha1=hook.allow_sha1, now=now)
        message = forge.read(request.header, body)
        audience = hook.audience(message)
        return NewDelivery(
            hook=hook.name,
            message=message,
            digest=sha256(proof.signed).hexdigest(),
            received_at=now,
            apps=audience.apps,
            reason=audience.reason,
            secret=hook.name_of(proof.secret),
        )

    async def _record(self, new: NewDelivery) -> Receipt:
        """Write a delivery down, then put what it leads to into the lanes."""
        try:
            receipt = await self._journal.accept(new)
        except JournalUnavailable as unavailable:
            self._missed(new.apps)
            raise Refused(503, f"the journal is unavailable: {unavailable}") from None
        self._put_into_lanes(receipt.queued)
        if receipt.verdict is Verdict.DUPLICATE:
            ended = [deployment.app for deployment in receipt.deployments if deployment.outcome is not None]
            self._repeated(ended)
        return receipt

    def _put_into_lanes(self, queued: Iterable[Deployment]) -> None:
        """What fails here is a bug, and no reason to deny that the delivery is on disk: a restart resumes it."""
        for deployment in queued:
            try:
                self._submit(deployment)
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001
                self.log.failure("Deployment {deployment} is in no lane", app=deployment.app, deployment=deployment.id)


class ScreenedResource(KleinResource):
    """Renders the routes of an app whose requests were screened, which spares the delivery two things that Klein does.

    Werkzeug does not look for the route again: it would take ``//hooks/github`` for ``/hooks/github``, and rendering
    would cost 70 µs more, a third of a delivery. And nobody cancels a route whose sender hangs up (klein#546): what it
    has begun to write is written.
    """

    def render(self, request: GuardedRequest) -> bytes | int:  # type: ignore[override]  # what Twisted asks of a leaf
        answer = self._app.execute_endpoint("health" if request.path == HEALTH else "receive", request)
        if not isinstance(answer, Deferred):
            return cast("bytes", answer)
        answer.addCallback(_finish, request).addErrback(_fail, request)
        return NOT_DONE_YET


def _finish(body: bytes, request: GuardedRequest) -> None:
    """Answer, if the sender is still there."""
    if not request.gone:
        request.write(body)
        request.finish()


def _fail(failure: Failure, request: GuardedRequest) -> None:
    request.processingFailed(failure)


def _screen_health(request: GuardedRequest) -> None:
    if request.method not in (b"GET", b"HEAD"):
        request.setHeader(b"Allow", b"GET, HEAD")
        raise Refused(405, "a method other than GET")
    if request.length != 0:
        raise Refused(413, "a health check with a body")
    request.limited = False


def _told(receipt: Receipt, reason: str) -> dict[str, object]:
    """The answer to a genuine delivery."""
    status = receipt.verdict.value
    if receipt.verdict is Verdict.IGNORED:
        return {"status": status, "reason": reason}
    deployments = [deployment.id for deployment in receipt.deployments]
    return {"status": status, "delivery": receipt.delivery, "deployments": deployments}
