"""The intake: the Klein application that takes deliveries in, and answers when the journal has them on disk.

It judges and writes down; it never deploys anything, and nothing that it has begun to write is undone by a sender who
hangs up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from twisted_hook.hooks import FORM, JSON, Hook, media_type
from twisted_hook.model import Deployment, JournalUnavailable, NewDelivery, Receipt, Refused, Verdict
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
    ) -> None:
        """``submit`` puts a deployment into its lane; ``now`` tells the seconds since the epoch, UTC."""
        self._journal = journal
        self._submit = submit
        self._now = now
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
        request.site.tally.note(f"{ACCEPTED} {receipt.verdict.value}: {new.message.name} on {new.hook}")
        request.setResponseCode(ACCEPTED)
        return request.answer(encode(_told(receipt, new.reason)))

    def _hook(self, request: GuardedRequest) -> Hook:
        hook = self._hooks.get(request.path)
        if hook is None:
            raise Refused(404, "no such path")
        return hook

    def _judge(self, request: GuardedRequest) -> NewDelivery:
        """Believe the request, read it, and find whom it is for, or refuse it."""
        hook, body = self._hook(request), request.body
        forge = FORGES[hook.forge]
        forge.verify(request.header, body, secrets=hook.secrets, allow_sha1=hook.allow_sha1)
        message = forge.read(request.header, body)
        audience = hook.audience(message.event)
        return NewDelivery(
            hook=hook.name,
            message=message,
            digest=sha256(body).hexdigest(),
            received_at=self._now(),
            apps=audience.apps,
            reason=audience.reason,
        )

    async def _record(self, new: NewDelivery) -> Receipt:
        """Write a delivery down, then put what it leads to into the lanes."""
        try:
            receipt = await self._journal.accept(new)
        except JournalUnavailable as unavailable:
            raise Refused(503, f"the journal is unavailable: {unavailable}") from None
        self._put_into_lanes(receipt.queued)
        return receipt

    def _put_into_lanes(self, queued: Iterable[Deployment]) -> None:
        """What fails here is a bug, and no reason to deny that the delivery is on disk: a restart resumes it."""
        for deployment in queued:
            try:
                self._submit(deployment)
            except CancelledError:
                raise
            except Exception:  # noqa: BLE001
                self.log.failure("Deployment {id} is in no lane", id=deployment.id)


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


def _told(receipt: Receipt, reason: str) -> dict[str, object]:
    """The answer to a genuine delivery."""
    status = receipt.verdict.value
    if receipt.verdict is Verdict.IGNORED:
        return {"status": status, "reason": reason}
    deployments = [deployment.id for deployment in receipt.deployments]
    return {"status": status, "delivery": receipt.delivery, "deployments": deployments}
