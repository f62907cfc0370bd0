"""The baseline of the door's figures: a Twisted Site with one resource that checks the signature and answers 202.

python -m benchmarks.bare_site PORT          # as Site is: it parses forms before any resource is asked
python -m benchmarks.bare_site PORT --plain  # with parsePOSTFormSubmission=False
"""

from __future__ import annotations

import hmac
import sys
from hashlib import sha256

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from tests import payloads


class Hook(Resource):
    """Believes a push if it is signed, and keeps nothing of it."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def render_GET(self, request: Request) -> bytes:
        return b"ok"

    def render_POST(self, request: Request) -> bytes:
        assert request.content is not None
        said = request.getHeader(b"x-hub-signature-256") or b""
        meant = b"sha256=" + hmac.new(payloads.SECRET, request.content.read(), sha256).hexdigest().encode()
        request.setResponseCode(202 if hmac.compare_digest(said, meant) else 401)
        request.setHeader(b"Content-Type", b"application/json")
        return b'{"status":"accepted"}'


def main() -> None:
    site = Site(Hook(), parsePOSTFormSubmission="--plain" not in sys.argv)
    TCP4ServerEndpoint(reactor, int(sys.argv[1]), interface="127.0.0.1").listen(site)
    reactor.run()


if __name__ == "__main__":
    main()
