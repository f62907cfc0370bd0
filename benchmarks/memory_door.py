"""hookdeploy's door and intake on a journal that is no more than memory: what the door itself costs.

python -m benchmarks.memory_door PORT
"""

from __future__ import annotations

import sys
import time

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint

from tests import payloads
from tests.fakes import MemoryJournal
from twisted_hook.hooks import Hook, Secret, Subscription
from twisted_hook.intake import Intake
from twisted_hook.model import Delivery, Deployment, NewDelivery
from twisted_hook.site import GuardedSite, Limits


class Unsuspecting(MemoryJournal):
    """Takes every delivery for a new one: the memory journal would look through all of them."""

    def _seen(self, new: NewDelivery) -> Delivery | None:
        return None


def forget(deployment: Deployment) -> None:
    """There is no lane."""


def main() -> None:
    hook = Hook(
        name="github",
        path="/hooks/github",
        forge="github",
        secrets=(Secret(payloads.SECRET),),
        subscriptions=(Subscription("busy", ("acme/busy",), "refs/heads/main"),),
    )
    intake = Intake(Unsuspecting(), forget, [hook], time.time)
    site = GuardedSite(intake.resource(), screen=intake.screen, reactor=reactor, limits=Limits())
    TCP4ServerEndpoint(reactor, int(sys.argv[1]), interface="127.0.0.1").listen(site)
    reactor.run()


if __name__ == "__main__":
    main()
