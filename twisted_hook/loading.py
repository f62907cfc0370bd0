"""What twistd loads of us: all of ``tap``, while the collector of garbage rests.

Modules are no garbage: to look through them again and again while they are loaded was a quarter of every start.
"""

from __future__ import annotations

import gc

gc.disable()
from twisted_hook.tap import Options, makeService  # noqa: E402 - that is the purpose

gc.freeze()
gc.enable()

__all__ = ["Options", "makeService"]
