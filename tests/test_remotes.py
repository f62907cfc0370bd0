"""A remote is asked what it has without a fetch, and the answer is what a fetch would give; the newest tag is found."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from tests.drivers import MemoryCheckout, MemoryRunner, commit
from tests.gitorigin import Origin, ambient, by_root
from tests.patient import is_called, up_when
from twisted_hook.boundaries import Checkout, CommandRunner
from twisted_hook.clone import Clone
from twisted_hook.commands import GIT_TIMEOUT
from twisted_hook.model import Command, CommandResult, Commit, StepFailed
from twisted_hook.process import SpawningRunner
from twisted_hook.releases import Releases
from twisted_hook.repository import ASKING_TIMEOUT

KINDS = ("releases", "clone")


class NotingRunner:
    """Notes what it runs."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    @property
    def names(self) -> list[str]:
        return [command.name for command in self.commands]

    async def run(self, command: Command, *, output: Callable[[bytes], None] | None = None) -> CommandResult:
        self.commands.append(command)
        return await SpawningRunner(reactor).run(command, output=output)


@dataclass
class World:
    """An origin, and both kinds of checkouts of it."""

    origin: Origin
    state: Path

    def checkout(self, kind: str) -> Releases | Clone:
        return self.releases() if kind == "releases" else self.clone()

    def releases(self, app: str = "blog", *, branch: str | None = "main", tag: str | None = None) -> Releases:
        times = count(1_790_000_000)
        return Releases(
            app=app,
            url=self.origin.url,
            branch=branch,
            tag=tag,
            directory=self.state / "apps" / app,
            mirror=self.state / "mirrors" / "blog.git",
            keep_newest=5,
            ambient=ambient(self.origin.directory),
            now=lambda: float(next(times)),
        )

    def clone(self, update: str = "rebase") -> Clone:
        if not self.path.exists():
            self.origin.clone()
        return Clone(self.path, "main", update, self.state / "apps" / "blog", ambient(self.origin.directory), float)

    @property
    def path(self) -> Path:
        return self.origin.directory / "clone"

    def tag(self, name: str, *options: str) -> str:
        """Commit, tag and push the tag, be it by force, and give the commit."""
        revision = self.origin.commit({"version": f"{name}\n"}, f"Release {name}")
        self.origin.git("tag", "--force", *options, name)
        self.origin.git("push", "--quiet", "--force", "origin", f"refs/tags/{name}")
        return revision


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Origin.create(tmp_path, {"app.py": "one\n"}), tmp_path / "state")


@pytest.fixture
def run() -> SpawningRunner:
    return SpawningRunner(reactor)


async def look(checkout: Checkout, run: CommandRunner) -> str | None:
    return checkout.tip_of(await checkout.advertised(run, checkout.follows))


async def deploy(checkout: Checkout, run: CommandRunner) -> Commit:
    tree = await checkout.take(run, await checkout.fetch(run))
    await checkout.keep(run, tree)
    return tree.commit


# What every checkout promises.


@dataclass
class Side:
    """A checkout, what runs its commands, and how something is pushed to its remote."""

    checkout: Checkout
    run: CommandRunner
    push: Callable[[], str]


@pytest.fixture(params=[*KINDS, "memory"])
def side(world: World, run: SpawningRunner, request: pytest.FixtureRequest) -> Side:
    if request.param != "memory":
        return Side(world.checkout(request.param), run, lambda: world.origin.push({}, "more"))
    memory, letters = MemoryCheckout(commit("0")), iter("123456789")

    def push() -> str:
        memory.tip = commit(next(letters))
        return memory.tip.revision

    return Side(memory, MemoryRunner(), push)


@pytest_twisted.ensureDeferred
async def test_a_look_gives_what_a_fetch_would_give(side: Side) -> None:
    for _ in range(2):
        pushed = side.push()
        assert await look(side.checkout, side.run) == pushed
        assert (await side.checkout.fetch(side.run)).revision == pushed
        assert await look(side.checkout, side.run) == pushed


@pytest_twisted.ensureDeferred
async def test_a_checkout_has_what_its_current_tree_is_of(side: Side) -> None:
    assert not await side.checkout.has(side.run, "f" * 40)
    first, run = side.push(), side.run
    assert not await side.checkout.has(run, first)
    await deploy(side.checkout, run)
    assert await side.checkout.has(run, first)
    second = side.push()
    assert not await side.checkout.has(run, second)
    await side.checkout.fetch(run)
    assert not await side.checkout.has(run, second)
    await deploy(side.checkout, run)
    assert await side.checkout.has(run, second)
    assert not await side.checkout.has(run, first)


@pytest_twisted.ensureDeferred
async def test_an_answer_without_its_ref_has_no_tip(side: Side) -> None:
    side.push()
    assert side.checkout.tip_of({}) is None
    assert side.checkout.tip_of({"refs/heads/other": "a" * 40}) is None


# What those promise that ask git.


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_a_look_changes_nothing_and_is_one_question(world: World, kind: str) -> None:
    run, checkout = NotingRunner(), world.checkout(kind)
    before = everything_below(world.origin.directory)
    assert await look(checkout, run)
    assert everything_below(world.origin.directory) == before
    assert not (world.state / "mirrors").exists()
    assert run.names.count("git ls-remote") == 1
    assert set(run.names) <= {"git ls-remote", "git remote"}


def everything_below(directory: Path) -> dict[Path, float]:
    return {path: path.lstat().st_mtime for path in directory.rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_refs_of_that_name_elsewhere_are_not_meant(world: World, run: SpawningRunner, kind: str) -> None:
    """git compares a pattern with the end of a name."""
    tip = await look(world.checkout(kind), run)
    other = world.origin.push({"app.py": "other\n"}, branch="HEAD:refs/heads/refs/heads/main")
    for ref in ("refs/remotes/x/refs/heads/main", "refs/tags/refs/heads/main", "refs/heads/HEAD", "refs/x/HEAD"):
        world.origin.git("update-ref", ref, other, at=world.origin.bare)
    checkout = world.checkout(kind)
    patterns = (*checkout.follows, "HEAD", "refs/tags/v*")
    assert await checkout.advertised(run, patterns) == {"HEAD": "refs/heads/main", "refs/heads/main": tip}


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_a_branch_that_is_gone_has_no_tip_and_may_come_back(world: World, run: SpawningRunner, kind: str) -> None:
    """P66."""
    checkout = world.checkout(kind)
    tip = (await deploy(checkout, run)).revision
    world.origin.git("push", "--quiet", "origin", "HEAD:refs/heads/other")
    world.origin.git("symbolic-ref", "HEAD", "refs/heads/other", at=world.origin.bare)
    world.origin.git("push", "--quiet", "--delete", "origin", "main")
    assert await look(checkout, run) is None
    world.origin.git("push", "--quiet", "origin", "HEAD:refs/heads/main")
    assert await look(checkout, run) == tip
    assert await checkout.has(run, tip)


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_an_origin_without_anything_has_no_tip(world: World, run: SpawningRunner, kind: str) -> None:
    checkout = world.checkout(kind)
    shutil.rmtree(world.origin.bare)
    world.origin.git("init", "--quiet", "--bare", str(world.origin.bare), at=world.origin.directory)
    assert await look(checkout, run) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_an_origin_that_is_not_there_is_no_answer(world: World, run: SpawningRunner, kind: str) -> None:
    """Otherwise its branch would be gone."""
    checkout = world.checkout(kind)
    shutil.rmtree(world.origin.bare)
    with pytest.raises(StepFailed, match="the remote could not be asked: there is no git repository"):
        await look(checkout, run)


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_an_origin_that_says_nothing_is_given_up_at_the_limit(world: World, kind: str) -> None:
    """P64."""
    checkout = replace(world.checkout(kind), timeout=0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/blog.git"
        if isinstance(checkout, Clone):
            world.origin.git("remote", "set-url", "origin", url, at=world.path)
        else:
            checkout = replace(checkout, url=url)
        with pytest.raises(StepFailed, match=r"the remote could not be asked: timeout after 0\.5 s"):
            await look(checkout, SpawningRunner(up_when(lambda: is_called(silent), 0.5)))


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_a_question_has_less_time_than_a_fetch(world: World, kind: str) -> None:
    """P64: a forge that swallows connections would keep the looks at all others waiting for five minutes each."""
    noting = NotingRunner()
    await look(world.checkout(kind), noting)
    asked = next(command for command in noting.commands if command.name == "git ls-remote")
    assert (asked.timeout, GIT_TIMEOUT) == (ASKING_TIMEOUT, 300)


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_a_remote_that_is_a_command_is_not_run(world: World, run: SpawningRunner, kind: str) -> None:
    """P60."""
    pwn = world.origin.directory / "PWN"
    checkout = world.checkout(kind)
    for url in (f"ext::sh -c 'touch {pwn}' ://x", f"--upload-pack=touch {pwn};"):
        if isinstance(checkout, Clone):
            world.origin.git("config", "protocol.ext.allow", "always", at=world.path)
            world.origin.git("config", "remote.origin.url", url, at=world.path)
        else:
            checkout = replace(checkout, url=url)
        with pytest.raises(StepFailed):
            await look(checkout, run)
    assert not pwn.exists()


@by_root
@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_an_origin_on_this_machine_may_belong_to_somebody_else(
    world: World, run: SpawningRunner, kind: str
) -> None:
    tip = await look(world.checkout(kind), run)
    world.origin.give_away()
    assert await look(world.checkout(kind), run) == tip is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest_twisted.ensureDeferred
async def test_more_refs_than_can_be_read_are_no_answer(
    world: World, run: SpawningRunner, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag that was cut off might be the newest."""
    monkeypatch.setattr("twisted_hook.repository.STDOUT_CAP", 50)
    with pytest.raises(StepFailed, match="more refs than hookdeploy can read that match refs/heads/main"):
        await look(world.checkout(kind), run)


# A mirror's remote.


@pytest_twisted.ensureDeferred
async def test_without_a_branch_the_remotes_head_is_followed(world: World, run: SpawningRunner) -> None:
    releases, origin = world.releases(branch=None), world.origin
    first = await look(releases, run)
    assert first == (await releases.fetch(run)).revision
    other = origin.push({"app.py": "other\n"}, branch="HEAD:refs/heads/trunk")
    assert await look(releases, run) == first
    origin.git("symbolic-ref", "HEAD", "refs/heads/trunk", at=origin.bare)
    assert await look(releases, run) == other
    for elsewhere in ("refs/heads/none", "refs/tags/v1"):
        origin.git("symbolic-ref", "HEAD", elsewhere, at=origin.bare)
        assert await look(releases, run) is None
    origin.git("update-ref", "--no-deref", "HEAD", other, at=origin.bare)
    assert await look(releases, run) is None


@pytest_twisted.ensureDeferred
async def test_one_question_serves_all_apps_of_a_remote(world: World) -> None:
    main = world.origin.git("rev-parse", "HEAD")
    v2, w1 = world.tag("v2"), world.tag("w1", "--annotate", "--message=x")
    live = world.origin.push({}, branch="HEAD:refs/heads/live")
    apps = {
        main: [world.releases(), world.releases(branch=None)],
        live: [world.releases(branch="live")],
        v2: [world.releases(tag="v*"), world.releases(tag="v2")],
        w1: [world.releases(tag="*"), world.releases(tag="w?")],
        None: [world.releases(branch="none"), world.releases(tag="x*"), world.releases(tag="V2")],
    }
    patterns = {ref for checkouts in apps.values() for one in checkouts for ref in one.follows}
    run = NotingRunner()
    advertised = await world.releases().advertised(run, patterns)
    assert run.names == ["git ls-remote"]
    for tip, checkouts in apps.items():
        assert [one.tip_of(advertised) for one in checkouts] == [tip] * len(checkouts)


@pytest_twisted.ensureDeferred
async def test_a_look_does_not_care_how_the_mirror_is(world: World, run: SpawningRunner) -> None:
    """Damaged, of other object ids, or held by a fetch."""
    releases = world.releases()
    tip = await look(releases, run)
    releases.mirror.mkdir(parents=True)
    assert await look(releases, run) == tip
    await deploy(releases, run)
    (releases.mirror / "index.lock").touch()
    (releases.mirror / "config").write_text("[core\n")
    assert await look(releases, run) == tip
    assert await releases.has(run, tip or "")
    shutil.rmtree(world.origin.bare)
    shutil.rmtree(world.origin.work)
    for place, bare in ((world.origin.bare, ["--bare"]), (world.origin.work, [])):
        words = ("init", "--quiet", "--initial-branch=main", "--object-format=sha256", *bare, str(place))
        world.origin.git(*words, at=world.origin.directory)
    world.origin.git("remote", "add", "origin", str(world.origin.bare))
    revision = world.origin.push({"app.py": "sha256\n"})
    assert len(revision) == 64
    assert await look(releases, run) == await look(world.releases(branch=None), run) == revision


@pytest_twisted.ensureDeferred
async def test_a_release_of_which_nobody_knows_what_it_is_of_has_nothing(world: World, run: SpawningRunner) -> None:
    releases = world.releases()
    tip = (await deploy(releases, run)).revision
    [record] = (releases.directory / "commits").iterdir()
    record.write_text("")
    assert await releases.has(run, tip)  # the mirror knows
    shutil.rmtree(releases.mirror)
    assert not await releases.has(run, tip)


# Tags.


@pytest_twisted.ensureDeferred
async def test_the_newest_tag_is_deployed(world: World, run: SpawningRunner) -> None:
    """Of both kinds, in the order of versions and not in that of time, and whatever the branches do."""
    releases, newest = world.releases(tag="v*", branch=None), ""
    for number, (name, is_newest) in enumerate(
        [("v1.9", True), ("v1.10-rc1", True), ("v1.10", True), ("v1.10-rc2", False), ("v1.8.7", False), ("w2", False)]
    ):
        options = ("--annotate", "--message=x") if number % 2 else ()
        revision = world.tag(name, *options)
        newest = revision if is_newest else newest
        world.origin.push({"more": name})
        assert await look(releases, run) == newest
        deployed = await deploy(releases, run)
        assert deployed.revision == newest
        assert await releases.has(run, newest)
    assert deployed.subject == "Release v1.10"


@pytest_twisted.ensureDeferred
async def test_no_tag_that_matches_is_told_with_the_pattern(world: World, run: SpawningRunner) -> None:
    world.tag("w1")
    releases = world.releases(tag="v*")
    assert await look(releases, run) is None
    with pytest.raises(StepFailed, match=r"the remote has no tag that matches v\*"):
        await releases.fetch(run)
    revision = world.tag("v1")
    assert (await releases.fetch(run)).revision == revision


@pytest_twisted.ensureDeferred
async def test_a_newest_tag_that_is_deleted_leaves_the_next_one_the_newest(world: World, run: SpawningRunner) -> None:
    releases = world.releases(tag="v*")
    first, second = world.tag("v1"), world.tag("v2", "--annotate", "--message=x")
    assert (await deploy(releases, run)).revision == second
    world.origin.git("push", "--quiet", "--delete", "origin", "v2")
    assert await look(releases, run) == first
    assert (await deploy(releases, run)).revision == first


@pytest.mark.parametrize("options", [(), ("--annotate", "--message=x")])
@pytest.mark.parametrize("pattern", ["production", "prod*"])
@pytest_twisted.ensureDeferred
async def test_a_tag_that_was_moved_is_followed(
    world: World, run: SpawningRunner, options: tuple[str, ...], pattern: str
) -> None:
    releases = world.releases(tag=pattern)
    for _ in range(2):
        revision = world.tag("production", *options)
        assert await look(releases, run) == revision
        assert (await deploy(releases, run)).revision == revision
    world.origin.git("tag", "--force", *options, "production", "HEAD~1")
    world.origin.git("push", "--quiet", "--force", "origin", "refs/tags/production")
    assert await look(releases, run) == world.origin.git("rev-parse", "HEAD~1")
    assert (await deploy(releases, run)).revision == world.origin.git("rev-parse", "HEAD~1")


@pytest_twisted.ensureDeferred
async def test_tags_may_have_slashes_and_give_way_to_one_below_their_name(world: World, run: SpawningRunner) -> None:
    """P65: also a tag of a tag is of its commit."""
    world.tag("release")
    await deploy(world.releases(tag="release"), run)
    world.origin.git("push", "--quiet", "--delete", "origin", "refs/tags/release")
    world.origin.git("tag", "--delete", "release")
    for name in ("release/1.9", "release/1.10", "release/sub/0.1"):
        revision = world.tag(name, "--annotate", "--message=x")
    releases = world.releases(tag="release/1*")
    deployed = await deploy(releases, run)
    assert deployed.subject == "Release release/1.10"
    assert await look(world.releases(tag="release/*"), run) == revision  # as with git tag --list
    world.origin.git("tag", "--annotate", "--message=x", "release/1.11", "release/1.9")
    world.origin.git("push", "--quiet", "origin", "refs/tags/release/1.11")
    assert await look(releases, run) == (await deploy(releases, run)).revision
    assert (await deploy(releases, run)).subject == "Release release/1.9"


@pytest_twisted.ensureDeferred
async def test_a_branch_with_the_name_of_the_tag_is_not_meant(world: World, run: SpawningRunner) -> None:
    revision = world.tag("v1")
    world.origin.push({"app.py": "branch\n"}, branch="HEAD:refs/heads/v2")
    world.origin.push({"app.py": "branch\n"}, branch="HEAD:refs/heads/v1")
    releases = world.releases(tag="v*")
    assert await look(releases, run) == (await deploy(releases, run)).revision == revision


# A clone's remote.


@pytest.mark.parametrize("update", ["rebase", "ff-only", "reset"])
@pytest_twisted.ensureDeferred
async def test_local_commits_on_top_are_no_reason_to_deploy(world: World, run: SpawningRunner, update: str) -> None:
    clone = world.clone(update)
    world.origin.push({"app.py": "one more\n"})
    tip = (await deploy(clone, run)).revision
    world.origin.commit({"local.py": "mine\n"}, "Mine", at=world.path)
    assert await clone.has(run, tip)
    mine = world.origin.git("rev-parse", "HEAD", at=world.path).strip()
    world.origin.git("reset", "--hard", "--quiet", "HEAD~2", at=world.path)
    assert not await clone.has(run, tip)
    assert await clone.has(run, tip, mine)
    world.origin.git("reset", "--hard", "--quiet", mine, at=world.path)
    if update == "rebase":
        tip = world.origin.push({"app.py": "two\n"})
        assert not await clone.has(run, tip)
        await deploy(clone, run)
        assert await clone.has(run, tip)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("update", ["rebase", "reset"])
@pytest_twisted.ensureDeferred
async def test_a_branch_that_has_gone_back_is_followed(
    world: World, run: SpawningRunner, update: str, local: bool
) -> None:
    """P56: the tip is an older commit, of which the clone has everything and more."""
    clone = world.clone(update)
    first = (await deploy(clone, run)).revision
    world.origin.push({"mistake.py": "x\n"})
    await deploy(clone, run)
    if local:
        world.origin.commit({"local.py": "mine\n"}, "Mine", at=world.path)
    world.origin.git("reset", "--quiet", "--hard", first)
    world.origin.git("push", "--quiet", "--force", "origin", "HEAD")
    assert await look(clone, run) == first
    assert not await clone.has(run, first)
    await deploy(clone, run)
    assert await clone.has(run, first)
    assert not (world.path / "mistake.py").exists()
    assert (world.path / "local.py").exists() == (local and update == "rebase")


@pytest_twisted.ensureDeferred
async def test_a_clone_that_cannot_go_back_is_not_asked_to_for_ever(world: World, run: SpawningRunner) -> None:
    """The new tip is fetched, and lies below what is there; only a reset would take that away."""
    clone = world.clone("ff-only")
    first = (await deploy(clone, run)).revision
    world.origin.push({"app.py": "two\n"})
    await deploy(clone, run)
    world.origin.git("reset", "--quiet", "--hard", first)
    world.origin.git("push", "--quiet", "--force", "origin", "HEAD")
    assert not await clone.has(run, first)
    await deploy(clone, run)
    assert await clone.has(run, first)


@pytest_twisted.ensureDeferred
async def test_what_a_person_has_pulled_or_pushed_there_is_there(world: World, run: SpawningRunner) -> None:
    clone, tip = world.clone(), world.origin.push({"app.py": "two\n"})
    world.origin.git("fetch", "--quiet", at=world.path)
    assert not await clone.has(run, tip)
    world.origin.git("merge", "--quiet", "--ff-only", "origin/main", at=world.path)
    assert await clone.has(run, tip)
    mine = world.origin.commit({"app.py": "three\n"}, at=world.path)
    world.origin.git("push", "--quiet", "origin", "HEAD", at=world.path)
    assert await look(clone, run) == mine
    assert await clone.has(run, mine)


@pytest_twisted.ensureDeferred
async def test_a_clone_that_is_not_there_has_nothing(world: World, run: SpawningRunner) -> None:
    clone = replace(world.clone(), path=Path("/no/such/clone"))
    assert not await clone.has(run, "a" * 40)
    with pytest.raises(StepFailed, match="/no/such/clone"):
        await look(clone, run)
