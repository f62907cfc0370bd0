"""The baseline of what a page is told: a Twisted Site whose events are one line each, the time at which it was written.

python -m benchmarks.bare_events PORT --every 0.1
"""

from __future__ import annotations

import argparse
import time

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

PAGE = b"""<!doctype html><title>bare</title><p id="said"></p><script>
new EventSource("/events").onmessage = (event) => { document.getElementById("said").textContent = event.data; };
</script>"""


class Page(Resource):
    isLeaf = True  # noqa: N815 - Twisted's name

    def render_GET(self, request: Request) -> bytes:
        return PAGE


class Events(Resource):
    """Tells all who follow."""

    isLeaf = True  # noqa: N815 - Twisted's name

    def __init__(self) -> None:
        super().__init__()
        self._followers: set[Request] = set()

    def render_GET(self, request: Request) -> int:
        request.setHeader(b"Content-Type", b"text/event-stream")
        request.write(b":\n\n")
        self._followers.add(request)
        request.notifyFinish().addErrback(lambda _: self._followers.discard(request))
        return NOT_DONE_YET

    def tell(self) -> None:
        said = b"data: %r\n\n" % time.time()
        for each in tuple(self._followers):
            each.write(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two events")
    given = parser.parse_args()
    root, events = Resource(), Events()
    root.putChild(b"", Page())
    root.putChild(b"events", events)
    TCP4ServerEndpoint(reactor, given.port, interface="127.0.0.1").listen(Site(root))
    LoopingCall(events.tell).start(given.every)
    reactor.run()


if __name__ == "__main__":
    main()
