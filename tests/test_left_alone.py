"""A generation whose hookdeploy has died: one that is unproven ends, so that a broken one serves nobody unwatched."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred

from tests.waiting import PATIENCE, become
from tests.wsgiapps import Site, site, soon
from twisted_hook.generation import LIFELINE, ServerProcess
from twisted_hook.model import Phase, ProbationFailed


def die(server: ServerProcess | None) -> None:
    """What the server sees of hookdeploy's death."""
    assert server is not None
    assert server.transport is not None
    server.transport.closeChildFD(LIFELINE)


async def on_probation(blog: Site) -> tuple[Deferred[None], ServerProcess]:
    """A second generation beside the first, for longer than any test lasts."""
    launch = blog.launch(text="two")
    swapping = Deferred.fromCoroutine(blog.server.swap(launch, blog.phases.append, probation=2 * PATIENCE))
    await become(lambda: Phase.PROBATION in blog.phases)
    [candidate] = (each for each in blog.server._alive if each is not blog.server._serving)
    return swapping, candidate


@pytest_twisted.ensureDeferred
async def test_a_generation_on_probation_ends_when_hookdeploy_dies_and_the_old_one_serves_on(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        swapping, candidate = await on_probation(blog)
        die(candidate)
        with pytest.raises(ProbationFailed):
            await soon(swapping)
        assert {await blog.get() for _ in range(5)} == {"one"}


@pytest_twisted.ensureDeferred
async def test_a_generation_that_was_chosen_serves_on_when_hookdeploy_dies(tmp_path: Path) -> None:
    async with site(tmp_path) as blog:
        await blog.serve()
        await blog.server.swap(blog.launch(text="two"), blog.phases.append, probation=0.2)
        serving = blog.server._serving
        assert serving is not None
        threads = Path(f"/proc/{serving.pid}/task")
        await become(lambda: len([*threads.iterdir()]) == 2, "the master's watch")
        die(serving)
        await become(lambda: len([*threads.iterdir()]) == 1, "the end of the master's watch")
        assert await blog.get() == "two"
