"""Apps that are about some files, and commits that ask not to be deployed: git judges, whatever a push says."""
# pytest-twisted has no types.
# mypy: disable-error-code="import-untyped, untyped-decorator"

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from tests.drivers import MemoryEnvironments, MemoryLog, MemoryServer, commit
from tests.fakes import MemoryJournal
from tests.gitorigin import Origin, ambient
from twisted_hook.boundaries import Checkout
from twisted_hook.clone import Clone
from twisted_hook.config import AppConfig, StepConfig
from twisted_hook.deploy import Deploying
from twisted_hook.model import Deployment, Outcome, Trigger
from twisted_hook.process import SpawningRunner
from twisted_hook.releases import Releases
from twisted_hook.story import Story

FILES = {"services/blog/app.py": "one\n", "services/shop/app.py": "one\n", "README": "one\n"}
BLOG = ("services/blog/**",)
MODES = ("release", "in-place")


@dataclass
class Site:
    """An origin of two services, and an app that is about one of them."""

    origin: Origin
    checkout: Checkout
    story: Story
    run: SpawningRunner
    logs: dict[str, MemoryLog] = field(default_factory=dict)

    @classmethod
    def create(cls, directory: Path, mode: str, files: Mapping[str, str]) -> Site:
        origin = Origin.create(directory, files)
        times: Iterator[float] = (1_790_000_000.0 + second for second in count())
        home, app = ambient(directory), directory / "state" / "apps" / "blog"
        app.mkdir(parents=True)
        checkout: Checkout
        if mode == "release":
            mirror = directory / "state" / "mirror.git"
            checkout = Releases("blog", origin.url, "main", app, mirror, 3, home, lambda: next(times))
        else:
            checkout = Clone(origin.clone(), "main", "rebase", app, home, lambda: next(times))
        run = SpawningRunner(reactor)
        logs: dict[str, MemoryLog] = {}
        story = Story(
            app=AppConfig(name="blog", hook="blog", branch="main", build=(), wsgi="a:b", probation=0.0, paths=BLOG),
            journal=MemoryJournal(),
            runner=run,
            checkout=checkout,
            environments=MemoryEnvironments(),
            server=MemoryServer(),
            open_log=lambda deployment: logs.setdefault(deployment, MemoryLog()),
            declared=dict,
            ambient=home,
            now=lambda: next(times),
            shown=lambda text: text,
        )
        return cls(origin, checkout, story, run, logs)

    async def deploy(self, trigger: Trigger = Trigger.PUSH, *, build: tuple[StepConfig, ...] = ()) -> Deployment:
        """What a lane does with a deployment, and what becomes of it."""
        story = replace(self.story, app=replace(self.story.app, build=build))
        made = await story.journal.enqueue("blog", trigger)
        deploying = Deploying(story, made)
        tree = await deploying.obtain()
        if tree is not None:
            await deploying.release(tree)
        ended = await story.journal.deployment(made.id)
        assert ended is not None
        return ended

    async def push(self, files: Mapping[str, str | None], message: str = "change") -> Deployment:
        self.origin.push(files, message)
        return await self.deploy()

    async def touches(self, *patterns: str) -> bool:
        """Between what runs and the tip."""
        return await self.checkout.touches(self.run, await self.checkout.fetch(self.run), patterns)

    async def skips(self, message: str) -> str:
        self.origin.push({}, message)
        return (await self.checkout.fetch(self.run)).skips


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new(tmp_path: Path, mode: str) -> Site:
    return Site.create(tmp_path, mode, FILES)


@pytest.fixture
def site(new: Site) -> Site:
    """One whose first commit runs."""
    first = pytest_twisted.blockon(Deferred.fromCoroutine(new.deploy(Trigger.START)))
    assert first.outcome is Outcome.DEPLOYED
    return new


# From push to push.


@pytest_twisted.ensureDeferred
async def test_a_push_that_changes_nothing_of_the_app_is_unchanged_and_the_next_that_does_is_deployed(
    site: Site,
) -> None:
    first = site.origin.git("rev-parse", "HEAD")
    spared = await site.push({"services/shop/app.py": "two\n"})
    assert spared.outcome is Outcome.UNCHANGED
    assert spared.revision is not None
    assert spared.reason == (
        f"{spared.revision[:7]} changes nothing of services/blog/** since {first[:7]}; "
        "hookdeploy deploy blog deploys it all the same"
    )
    done = await site.push({"services/blog/app.py": "two\n"})
    assert (done.outcome, done.previous) == (Outcome.DEPLOYED, first)
    current = await site.checkout.current(site.run)
    assert current is not None
    assert (current.path / "services/shop/app.py").read_text() == "two\n"


@pytest_twisted.ensureDeferred
async def test_the_first_deployment_asks_for_no_files(new: Site, mode: str) -> None:
    new.origin.push({"README": "two\n"})
    assert (await new.deploy()).outcome is Outcome.DEPLOYED


@pytest_twisted.ensureDeferred
async def test_a_change_that_came_with_a_failed_deployment_is_seen_by_the_next_push(site: Site) -> None:
    broken = (StepConfig("break", ("false",)),)
    site.origin.push({"services/blog/app.py": "two\n"})
    assert (await site.deploy(build=broken)).outcome is Outcome.FAILED
    assert (await site.push({"README": "two\n"})).outcome is Outcome.DEPLOYED


@pytest_twisted.ensureDeferred
async def test_a_change_that_came_with_a_spared_commit_is_seen_by_the_next_push(site: Site) -> None:
    assert (await site.push({"services/blog/app.py": "two\n"}, "[skip deploy]")).outcome is Outcome.UNCHANGED
    assert (await site.push({"README": "two\n"})).outcome is Outcome.DEPLOYED


@pytest_twisted.ensureDeferred
async def test_a_change_that_was_taken_back_in_the_same_push_is_none(site: Site) -> None:
    site.origin.commit({"services/blog/app.py": "two\n"})
    assert (await site.push({"services/blog/app.py": "one\n"})).outcome is Outcome.UNCHANGED


@pytest.mark.parametrize("trigger", [Trigger.MANUAL, Trigger.START])
@pytest_twisted.ensureDeferred
async def test_what_a_person_or_a_start_asks_for_is_deployed_all_the_same(site: Site, trigger: Trigger) -> None:
    assert (await site.push({"README": "two\n"}, "[skip deploy]")).outcome is Outcome.UNCHANGED
    assert (await site.deploy(trigger)).outcome is Outcome.DEPLOYED


@pytest_twisted.ensureDeferred
async def test_a_replay_is_judged_as_a_push(site: Site) -> None:
    await site.push({"README": "two\n"})
    assert (await site.deploy(Trigger.REPLAY)).outcome is Outcome.UNCHANGED


@pytest_twisted.ensureDeferred
async def test_a_forced_push_is_compared_with_what_runs(site: Site) -> None:
    """What it takes away is a change, though no commit that came has it."""
    before = site.origin.git("rev-parse", "HEAD")
    assert (await site.push({"services/blog/app.py": "two\n"})).outcome is Outcome.DEPLOYED
    site.origin.git("reset", "--quiet", "--hard", before)
    assert (await site.push({"README": "two\n"})).outcome is Outcome.DEPLOYED
    current = await site.checkout.current(site.run)
    assert current is not None
    assert (current.path / "services/blog/app.py").read_text() == "one\n"


@pytest_twisted.ensureDeferred
async def test_a_forced_push_that_leaves_the_app_as_it_is_is_unchanged(site: Site) -> None:
    before = site.origin.git("rev-parse", "HEAD")
    await site.push({"README": "two\n"})
    site.origin.git("reset", "--quiet", "--hard", before)
    assert (await site.push({"README": "three\n"})).outcome is Outcome.UNCHANGED


@pytest.mark.parametrize(("changed", "touches"), [("services/blog/app.py", True), ("README", False)])
@pytest_twisted.ensureDeferred
async def test_what_a_merge_brings_counts(site: Site, changed: str, touches: bool) -> None:
    site.origin.git("switch", "--quiet", "--create", "side")
    site.origin.commit({changed: "two\n"})
    site.origin.git("switch", "--quiet", "main")
    site.origin.commit({"services/shop/app.py": "two\n"})
    site.origin.git("merge", "--quiet", "--no-edit", "side")
    site.origin.git("push", "--quiet", "origin", "main")
    assert (await site.deploy()).outcome is (Outcome.DEPLOYED if touches else Outcome.UNCHANGED)


@pytest_twisted.ensureDeferred
async def test_a_history_that_is_none_of_ours_is_compared_all_the_same(site: Site) -> None:
    site.origin.git("switch", "--quiet", "--orphan", "other")
    site.origin.commit(FILES)
    site.origin.git("push", "--quiet", "--force", "origin", "HEAD:main")
    assert not await site.touches(*BLOG)
    site.origin.commit({"services/blog/app.py": "two\n"})
    site.origin.git("push", "--quiet", "--force", "origin", "HEAD:main")
    assert await site.touches(*BLOG)


def import_commits(origin: Origin, number: int, names: Mapping[int, str]) -> None:
    """So many commits on top of main, each with another README, and one more file where ``names`` has one for it."""
    lines = []
    for mark in range(1, number + 1):
        lines += ["commit refs/heads/main", f"committer A <a@example.com> {1_790_000_000 + mark} +0000", "data 1", "x"]
        lines += ["from refs/heads/main^0"] if mark == 1 else []
        for name in filter(None, ("README", names.get(mark))):
            lines += [f"M 100644 inline {name}", f"data {len(str(mark))}", str(mark)]
        lines.append("")
    script = "\n".join(lines) + "\n"
    subprocess.run(
        ["git", "-C", origin.bare, "fast-import", "--quiet"], input=script.encode(), env=origin.environment, check=True
    )


@pytest.mark.parametrize(("names", "outcome"), [({}, Outcome.UNCHANGED), ({7: BLOG[0][:-2] + "new"}, Outcome.DEPLOYED)])
@pytest_twisted.ensureDeferred
async def test_a_push_of_more_commits_than_any_payload_lists_is_judged_the_same(
    site: Site, names: Mapping[int, str], outcome: Outcome
) -> None:
    """GitHub's payloads have 2,048 commits at the most and those of GitLab 20; the change is among the first."""
    import_commits(site.origin, 2_100, names)
    assert (await site.deploy()).outcome is outcome


# What a change is.


@pytest.mark.parametrize(
    ("before", "after"), [("services/blog/app.py", "moved.py"), ("README", "services/blog/README")]
)
@pytest_twisted.ensureDeferred
async def test_a_rename_into_the_directory_or_out_of_it_is_a_change(site: Site, before: str, after: str) -> None:
    site.origin.git("mv", before, after)
    site.origin.push({})
    assert await site.touches(*BLOG)
    assert not await site.touches("services/shop")


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_deleted_or_gets_another_mode_is_a_change(site: Site) -> None:
    site.origin.push({"services/shop/app.py": None})
    assert (await site.touches("services/shop"), await site.touches(*BLOG)) == (True, False)
    site.origin.git("update-index", "--chmod=+x", "services/blog/app.py")
    site.origin.git("commit", "--quiet", "--message", "mode")
    site.origin.git("push", "--quiet", "origin", "main")
    assert await site.touches(*BLOG)


@pytest_twisted.ensureDeferred
async def test_another_commit_of_a_submodule_is_a_change_whatever_the_repository_makes_of_it(
    site: Site, mode: str
) -> None:
    modules = '[submodule "lib"]\n\tpath = services/blog/lib\n\turl = ./lib\n\tignore = all\n'
    for revision in ("a" * 40, "b" * 40):
        site.origin.commit({".gitmodules": modules})
        site.origin.git("update-index", "--add", "--cacheinfo", f"160000,{revision},services/blog/lib")
        site.origin.git("commit", "--quiet", "--message", "submodule")
        site.origin.git("push", "--quiet", "origin", "HEAD")
        if mode == "in-place":
            site.origin.git("config", "submodule.lib.ignore", "all", at=site.origin.directory / "clone")
        for patterns in (BLOG, ("services/blog/lib",), ("services/blog/lib/",), ("services/blog/lib/**",)):
            assert await site.touches(*patterns), patterns
        assert not await site.touches("services/shop")
        assert (await site.deploy()).outcome is Outcome.DEPLOYED


@pytest_twisted.ensureDeferred
async def test_no_attribute_or_setting_of_the_repository_runs_anything_or_hides_a_change(
    site: Site, mode: str, tmp_path: Path
) -> None:
    attributes = "* diff=evil -diff\n"
    site.origin.push({".gitattributes": attributes, "services/blog/app.py": "two\n"})
    if mode == "in-place":
        clone = site.origin.directory / "clone"
        for key in ("diff.evil.textconv", "diff.evil.command", "diff.external"):
            site.origin.git("config", key, f"touch {tmp_path / 'pwned'}; false", at=clone)
        site.origin.git("config", "diff.noprefix", "true", at=clone)
        (clone / ".gitattributes").write_text(attributes)
    assert await site.touches(*BLOG)
    assert not (tmp_path / "pwned").exists()


# Which files a pattern means.

ODD = (":(exclude)x", ":/", "-n", "--help", "a*b", "[x]", "sp ace", "ü", "back\\slash", "!bang", "new\nline")


@pytest_twisted.ensureDeferred
async def test_a_name_of_any_characters_means_the_file_and_the_directory_called_so(tmp_path: Path, mode: str) -> None:
    site = Site.create(tmp_path, mode, {"README": "one\n"})
    await site.deploy(Trigger.START)
    names = [name for name in ODD if "/" not in name]  # of the others the pattern alone is hostile
    steps = {}
    for name in names:
        file, even = site.origin.commit({name: "x\n"}), site.origin.commit({name: None})
        steps[name] = (file, even, site.origin.commit({f"{name}/deep/file": "x\n"}))
        site.origin.commit({f"{name}/deep/file": None})
    site.origin.git("push", "--quiet", "origin", "HEAD")
    tip = await site.checkout.fetch(site.run)

    async def touches(revision: str, pattern: str) -> bool:
        return await site.checkout.touches(site.run, replace(tip, revision=revision), (pattern,))

    for name in ODD:
        assert not await touches(tip.revision, name.replace("!", "\\!")), name
    for name, (file, even, directory) in steps.items():
        pattern = name.replace("!", "\\!")
        assert await touches(file, pattern), name
        assert not await touches(even, pattern), name
        for each in (name, f"{name}/", f"{name}/**", f"/{name}/**", f"./{name}//deep"):
            assert await touches(directory, each.replace("!", "\\!")) or name == "!bang", each
        assert await touches(directory, f"{pattern}/**"), name


CHANGED = "services/blog/static/site.css"


PATTERNS = (
    (("services/blog",), True),
    (("services/blog/",), True),
    (("/services/blog/static/",), True),
    (("services/b*/**",), True),
    (("services/*",), False),
    (("services/*/",), True),
    (("**/*.css",), True),
    (("*.css",), False),
    (("**/static/**",), True),
    (("services/blog/static/s?te.[ac]ss",), True),
    (("services/blo",), False),
    (("services/blog/**", "!services/blog/static"), False),
    (("!services/blog/static", "services/blog/**"), False),
    (("services/blog/**", "!**/*.js"), True),
    (("!services/blog",), False),
    (("!services/shop",), True),
    (("!services/shop", "!**/*.css"), False),
    (("**",), True),
    (("/",), True),
    ((".",), True),
    (("**/", "!**"), False),
    (("services/shop/../blog/**",), True),
    (("../../services/blog",), True),
    (("services/shop", "README"), False),
    (("SERVICES/blog",), False),
)


@pytest_twisted.ensureDeferred
async def test_a_pattern_is_a_path_or_a_glob(site: Site) -> None:
    site.origin.push({CHANGED: "p {}\n"})
    tip = await site.checkout.fetch(site.run)
    for patterns, touches in PATTERNS:
        assert await site.checkout.touches(site.run, tip, patterns) is touches, patterns


@pytest_twisted.ensureDeferred
async def test_an_app_without_patterns_is_about_everything(site: Site) -> None:
    site.story = replace(site.story, app=replace(site.story.app, paths=()))
    assert (await site.push({"README": "two\n"})).outcome is Outcome.DEPLOYED


# What git cannot tell.


@pytest_twisted.ensureDeferred
async def test_what_git_cannot_tell_is_a_change(site: Site, mode: str) -> None:
    assert await site.checkout.touches(site.run, commit("e"), BLOG)
    assert await site.checkout.touches(site.run, await site.checkout.fetch(site.run), ("x" * 200_000,))
    site.origin.push({"README": "two\n"})
    tip = await site.checkout.fetch(site.run)
    assert not await site.checkout.touches(site.run, tip, BLOG)
    repository = site.origin.directory / ("state/mirror.git" if mode == "release" else "clone/.git")
    for file in [path for path in (repository / "objects").rglob("*") if path.is_file()]:
        file.unlink()  # it may be the origin's own
        file.write_bytes(b"damaged")
    assert await site.checkout.touches(site.run, tip, BLOG)


@pytest_twisted.ensureDeferred
async def test_without_a_current_tree_everything_is_a_change(tmp_path: Path) -> None:
    site = Site.create(tmp_path, "release", FILES)
    assert await site.touches("nothing")


@pytest_twisted.ensureDeferred
async def test_a_release_of_which_nobody_knows_what_it_is_of_has_changed(tmp_path: Path) -> None:
    site = Site.create(tmp_path, "release", FILES)
    await site.deploy(Trigger.START)
    state = tmp_path / "state"
    for note in (state / "apps/blog/commits").iterdir():
        note.unlink()
    tip = await site.checkout.fetch(site.run)
    (state / "mirror.git").rename(state / "gone.git")
    assert await site.checkout.touches(site.run, tip, BLOG)


# Kinds of repositories.


@pytest_twisted.ensureDeferred
async def test_a_repository_with_sha256_is_judged_the_same(tmp_path: Path, mode: str) -> None:
    origin = Origin(tmp_path)
    kind = ("init", "--quiet", "--initial-branch=main", "--object-format=sha256")
    origin.git(*kind, "--bare", str(origin.bare), at=tmp_path)
    origin.git(*kind, str(origin.work), at=tmp_path)
    origin.git("remote", "add", "origin", str(origin.bare))
    origin.push(FILES)
    again = Site.create(tmp_path / "other", "release", FILES)
    url, work = origin.url, tmp_path / "sha256"
    checkout: Checkout
    if mode == "release":
        assert isinstance(again.checkout, Releases)
        checkout = replace(again.checkout, url=url)
    else:
        origin.git("clone", "--quiet", url, str(work), at=tmp_path)
        checkout = Clone(work, "main", "rebase", tmp_path / "other/state/apps/blog", again.story.ambient, lambda: 0.0)
    site = replace(again, origin=origin, checkout=checkout, story=replace(again.story, checkout=checkout))
    assert (await site.deploy(Trigger.START)).outcome is Outcome.DEPLOYED
    assert (await site.push({"README": "two\n"})).outcome is Outcome.UNCHANGED
    assert (await site.push({"services/blog/app.py": "two\n"})).outcome is Outcome.DEPLOYED


@pytest_twisted.ensureDeferred
async def test_a_shallow_remote_is_judged_after_a_forced_push_too(tmp_path: Path) -> None:
    site = Site.create(tmp_path, "release", FILES)
    assert (await site.deploy(Trigger.START)).outcome is Outcome.DEPLOYED
    shallow = tmp_path / "shallow.git"
    for files, outcome in (
        ({"README": "two\n"}, Outcome.UNCHANGED),
        ({"services/blog/app.py": "two\n"}, Outcome.DEPLOYED),
        ({"README": "three\n"}, Outcome.UNCHANGED),
    ):
        site.origin.push(files)
        site.origin.commit({})
        site.origin.git("push", "--quiet", "origin", "HEAD")
        shutil.rmtree(shallow, ignore_errors=True)
        url = f"file://{site.origin.bare}"
        site.origin.git("clone", "--quiet", "--bare", "--depth=1", url, str(shallow), at=tmp_path)
        assert isinstance(site.checkout, Releases)
        checkout = replace(site.checkout, url=str(shallow))
        site.story = replace(site.story, checkout=checkout)
        assert (await site.deploy()).outcome is outcome


# In place, with commits of its own.


@pytest_twisted.ensureDeferred
async def test_local_commits_are_no_change_of_what_comes(tmp_path: Path) -> None:
    site = Site.create(tmp_path, "in-place", FILES)
    site.origin.commit({"services/blog/local.py": "ours\n"}, "local", at=tmp_path / "clone")
    await site.deploy(Trigger.START)
    assert (await site.push({"README": "two\n"})).outcome is Outcome.UNCHANGED
    assert (await site.push({"services/blog/app.py": "two\n"})).outcome is Outcome.DEPLOYED
    assert (await site.push({"README": "three\n"})).outcome is Outcome.UNCHANGED
    before = site.origin.git("rev-parse", "HEAD~2")
    site.origin.git("reset", "--quiet", "--hard", before)
    assert (await site.push({"README": "four\n"})).outcome is Outcome.DEPLOYED  # what was forced away is a change
    assert (tmp_path / "clone/services/blog/local.py").exists()


@pytest.mark.parametrize("update", ["rebase", "reset"])
@pytest_twisted.ensureDeferred
async def test_what_a_reset_would_take_away_is_a_change(tmp_path: Path, update: str) -> None:
    site = Site.create(tmp_path, "in-place", FILES)
    site.origin.commit({"services/blog/local.py": "ours\n"}, "local", at=tmp_path / "clone")
    assert isinstance(site.checkout, Clone)
    site.checkout = replace(site.checkout, update=update)
    site.origin.push({"README": "two\n"})
    assert await site.touches(*BLOG) is (update == "reset")


@pytest_twisted.ensureDeferred
async def test_a_clone_that_remembers_no_tips_compares_all_that_it_has(tmp_path: Path) -> None:
    """Without a reflog nobody can tell its own commits from those that the origin has taken back."""
    site = Site.create(tmp_path, "in-place", FILES)
    clone = tmp_path / "clone"
    site.origin.git("config", "core.logAllRefUpdates", "false", at=clone)
    shutil.rmtree(clone / ".git/logs")
    site.origin.commit({"services/blog/local.py": "ours\n"}, "local", at=clone)
    site.origin.push({"README": "two\n"})
    assert await site.touches(*BLOG)
    assert not await site.touches("services/shop")


@pytest_twisted.ensureDeferred
async def test_what_could_not_be_gone_back_from_is_not_what_runs(tmp_path: Path) -> None:
    site = Site.create(tmp_path, "in-place", FILES)
    await site.deploy(Trigger.START)
    await site.checkout.take(site.run, (await site.checkout.fetch(site.run)))
    site.origin.push({"services/blog/app.py": "two\n"})
    await site.checkout.take(site.run, (await site.checkout.fetch(site.run)))  # and then hookdeploy is gone
    assert await site.touches(*BLOG)


# Commits that ask not to be deployed.


@pytest.mark.parametrize(
    ("message", "skips"),
    [
        ("Fix a typo [skip deploy]", "[skip deploy]"),
        ("[deploy skip] Fix a typo", "[deploy skip]"),
        ("Fix a typo\n\nOnly words.\n\n[Skip Deploy]\n", "[skip deploy]"),
        ("Fix a typo\n\nSkips: [DEPLOY SKIP]\nSigned-off-by: Ada <a@example.com>", "[deploy skip]"),
        ('Revert "Fix a typo [skip deploy]"\n\nThis reverts commit 0.', "[skip deploy]"),
        ("ü [skip deploy] \x1b[31m", "[skip deploy]"),
        ("Skip deploy of the blog", ""),
        ("[skip ci]", ""),
        ("s [skipXdeploy] kip", ""),
        ("Fix it\n\n[skip\ndeploy]", ""),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_whole_message_of_the_tip_is_searched(tmp_path: Path, message: str, skips: str) -> None:
    site = Site.create(tmp_path, "release", FILES)
    assert await site.skips(message) == skips
    assert await site.skips("And on it goes") == ""


@pytest_twisted.ensureDeferred
async def test_a_commit_that_asks_not_to_be_deployed_is_not_and_that_is_shown(site: Site) -> None:
    spared = await site.push({"services/blog/app.py": "two\n"}, "Try this\n\n[Deploy Skip]")
    assert spared.outcome is Outcome.UNCHANGED
    assert spared.revision is not None
    assert spared.reason == (
        f"{spared.revision[:7]} has a message that says [deploy skip]; hookdeploy deploy blog deploys it all the same"
    )
    assert (await site.push({}, "Go")).outcome is Outcome.DEPLOYED


@pytest.mark.parametrize("encoding", ["ISO-8859-1", "UTF-16", "no-such-encoding"])
@pytest_twisted.ensureDeferred
async def test_a_message_in_another_encoding_is_searched_too(tmp_path: Path, encoding: str) -> None:
    site = Site.create(tmp_path, "release", FILES)
    message = tmp_path / "message"
    message.write_bytes("Gr\xfc\xdfe\n\n[skip deploy]\n".encode("latin-1"))
    site.origin.git("-c", f"i18n.commitEncoding={encoding}", "commit", "--allow-empty", "-q", "-F", str(message))
    site.origin.git("push", "--quiet", "origin", "HEAD")
    assert (await site.checkout.fetch(site.run)).skips == "[skip deploy]"


@pytest.mark.parametrize(("mode", "lines"), [("release", 1), ("in-place", 4_000)])
@pytest_twisted.ensureDeferred
async def test_a_message_of_twenty_mebibytes_is_searched_and_kept_out_of_the_log(
    site: Site, tmp_path: Path, lines: int
) -> None:
    message = tmp_path / "message"
    message.write_text(("word " * (4 * 1024 * 1024 // lines) + "\n") * lines + "[skip deploy]\n")
    site.origin.git("commit", "--allow-empty", "-q", "-F", str(message))
    site.origin.git("push", "--quiet", "origin", "HEAD")
    spared = await site.deploy()
    assert (spared.outcome, "[skip deploy]" in spared.reason) == (Outcome.UNCHANGED, True)
    assert len(site.logs[spared.id].output) < 10_000


@pytest_twisted.ensureDeferred
async def test_notes_and_authors_are_no_part_of_a_message(site: Site) -> None:
    site.origin.commit({"services/blog/app.py": "two\n"}, "Say two")
    site.origin.git("commit", "-q", "--amend", "--no-edit", "--author", "[skip deploy] <a@example.com>")
    site.origin.git("notes", "add", "-m", "[skip deploy]")
    site.origin.git("push", "--quiet", "origin", "HEAD", "refs/notes/commits")
    if (clone := site.origin.directory / "clone").exists():
        site.origin.git("fetch", "--quiet", "origin", "refs/notes/commits:refs/notes/commits", at=clone)
    assert (await site.deploy()).outcome is Outcome.DEPLOYED


@pytest_twisted.ensureDeferred
async def test_nothing_of_ours_reaches_git_from_outside(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "GIT_LITERAL_PATHSPECS", "1")
    monkeypatch.setitem(os.environ, "GIT_NOGLOB_PATHSPECS", "1")
    site.origin.push({CHANGED: "p {}\n"})
    assert await site.touches("**/*.css")
