"""The pages as they are rendered, of a history in which every text is hostile."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from shutil import rmtree
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.dashboards import BIDI, NOW, Shown, lived_in
from tests.steered import SteeredApp
from twisted_hook.boundaries import AppServer
from twisted_hook.changes import Change, Kind
from twisted_hook.dashboard import logtail, words
from twisted_hook.dashboard.ansi import PLAIN, Style, coloured
from twisted_hook.dashboard.assets import load
from twisted_hook.dashboard.chart import HEIGHT, MOST, WIDTH, chart_of
from twisted_hook.dashboard.views import Part, View, commit_link
from twisted_hook.model import (
    Commit,
    Deployment,
    Environment,
    Launch,
    Outcome,
    Phase,
    Refused,
    ServerStatus,
    Steering,
    StepFailed,
    Tree,
    Trigger,
)

VOID = {"meta", "link", "input", "br", "img", "hr"}
PATHS = ("/", "/apps/web", "/apps/docs", "/deliveries", "/hooks")
KEPT = ("good", "failed", "running")
BUDGET = 60_000
"""Bytes of a page with all that belongs to it."""


class Checked(HTMLParser):
    """A page that is read strictly: what is wrong with it is in ``faults``."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.ids: Counter[str] = Counter()
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.links: list[str] = []
        self._referred: list[str] = []
        self._open: list[str] = []
        self._form: list[dict[str, str]] | None = None
        self.forms: list[tuple[str, list[dict[str, str]]]] = []
        self.feed(html)
        self.close()
        self._conclude()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if len(given) != len(attrs):
            self.faults.append(f"an attribute twice in {attrs}")
        self.tags[tag] += 1
        self._check(tag, given)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text += data

    def _check(self, tag: str, given: dict[str, str]) -> None:
        self.faults += [f"{name} in {tag}" for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and not given.get("src", "").startswith("/static/")):
            self.faults.append(f"{tag} of its own")
        if "id" in given:
            self.ids[given["id"]] += 1
        for name in ("for", "aria-labelledby", "aria-describedby"):
            self._referred += given.get(name, "").split()
        if tag == "a":
            self.links.append(given["href"])
        if tag == "form":
            self.forms.append((given["action"], []))
        if tag in {"input", "button"} and self.forms:
            self.forms[-1][1].append(given)

    def _conclude(self) -> None:
        self.faults += [f"{tag} is not closed" for tag in self._open]
        self.faults += [f"two elements are called {name}" for name, count in self.ids.items() if count > 1]
        self.faults += [f"nothing is called {name}" for name in self._referred if name not in self.ids]
        if self.tags["h1"] != 1 or self.tags["main"] != 1:
            self.faults.append("not one h1 and one main")


class Rendering(SynchronousTestCase):
    """A dashboard that has lived a while."""

    def setUp(self) -> None:
        state = Path(tempfile.mkdtemp())
        self.addCleanup(rmtree, state)
        self.shown = Shown(state, Clock())
        self.ids = self.successResultOf(Deferred.fromCoroutine(lived_in(self.shown)))
        self.views = self.shown.dashboard._views
        self.pages = self.shown.dashboard._pages

    def view(self, path: str) -> View:
        found = self.successResultOf(Deferred.fromCoroutine(self.views.at(path)))
        assert found is not None, path
        return found

    def html(self, path: str) -> str:
        return self.pages.page(self.view(path), path=path, csrf="c" * 64)

    def page(self, path: str) -> Checked:
        return Checked(self.html(path))

    @property
    def paths(self) -> list[str]:
        deployments = [f"/deployments/{self.ids[name]}" for name in KEPT]
        return [*PATHS, *deployments, *(f"/deliveries/{self.ids[name]}" for name in ("delivery", "ignored", "ping"))]


class EveryPageTests(Rendering):
    def test_it_is_well_formed_and_has_no_script_or_style_in_it(self) -> None:
        for path in self.paths:
            self.assertEqual(self.page(path).faults, [], path)

    def test_hostile_texts_are_nothing_but_text(self) -> None:
        """P87."""
        for path in self.paths:
            html = self.html(path)
            self.assertNotIn("<script>", html)
            self.assertNotIn("<svg onload", html)
            self.assertNotIn("<img", html)
            self.assertNotIn(BIDI[0], html)
            self.assertIsNone(re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", html))
        told = self.page(f"/deployments/{self.ids['failed']}").text
        self.assertIn("<script>alert(1)</script>", told)
        self.assertIn('"><svg onload=x>', told)
        self.assertIn("refs/heads/<img src=x onerror=y>", self.page(f"/deliveries/{self.ids['ignored']}").text)

    def test_every_form_that_is_posted_carries_the_token_of_the_session(self) -> None:
        for path in self.paths:
            for action, fields in self.page(path).forms:
                self.assertIn(("csrf", "c" * 64), [(each.get("name"), each.get("value")) for each in fields], action)

    def test_what_is_told_to_all_readers_holds_no_token_of_a_session(self) -> None:
        for path in self.paths:
            for html in self.pages.parts(self.view(path).parts).values():
                self.assertNotIn("c" * 64, html)

    def test_every_part_is_one_element_of_its_name(self) -> None:
        for path in self.paths:
            for name, html in self.pages.parts(self.view(path).parts).items():
                self.assertRegex(html.strip(), rf'\A<(\w+) id="{re.escape(name)}" data-part[^>]*>(?s:.*)</\1>\Z')

    def test_links_lead_to_our_own_pages_and_to_commits_at_the_configured_forge(self) -> None:
        for path in self.paths:
            foreign = [link for link in self.page(path).links if not link.startswith(("/", "#"))]
            self.assertEqual(
                [link for link in foreign if not link.startswith("https://forge.example/acme/web/commit/")], []
            )

    def test_all_of_it_is_light(self) -> None:
        own = sum(len(asset.body) for asset in load().values())
        for path in self.paths:
            self.assertLess(len(self.html(path).encode()) + own, BUDGET, path)

    def test_buttons_and_fields_have_ids_by_which_the_focus_comes_back(self) -> None:
        for path in self.paths:
            for _, fields in self.page(path).forms:
                self.assertEqual([each for each in fields if each.get("type") != "hidden" and "id" not in each], [])


@dataclass
class Server:
    """A server that a test has made so."""

    status: ServerStatus
    launch: Launch | None


class OverviewTests(Rendering):
    def serve(self, state: str, release: str, reason: str = "") -> str:
        """What the card of web says while its server is in this state, with this release."""
        commit = Commit("5e7" + "0" * 37, "Serve", "Ada Lovelace")
        launch = Launch(Tree(Path("x"), commit, release), Environment(Path("python")), {})
        status = ServerStatus(state, NOW - 60, reason=reason)
        self.shown.apps[0].server = cast("AppServer", Server(status, launch))
        return " ".join(Text(self.pages.parts(self.view("/").parts)["app-web"]).text.split())

    def test_what_a_server_serves_runs_since_it_was_deployed_last(self) -> None:
        told = self.serve("serving", "r-17b2c3d")
        self.assertIn("● serving", told)
        self.assertIn("5e70000 Serve by Ada Lovelace · deployed 2 d ago", told)

    def test_what_a_server_serves_since_longer_than_is_written_down_runs_since_it_started(self) -> None:
        self.assertIn("· since 1 min ago", self.serve("serving", "r-forgotten"))

    def test_what_was_deployed_long_ago_is_found(self) -> None:
        commit = Commit("6" * 40, "Never mind", "Ada Lovelace")
        for number in range(60):
            made = self.shown.deployed("web", commit, Outcome.FAILED, at=NOW + number)
            self.successResultOf(Deferred.fromCoroutine(made))
        told = Text(self.pages.parts(self.view("/").parts)["app-web"]).text
        self.assertIn("Say hello to everybody", told)

    def test_a_server_in_trouble_says_why(self) -> None:
        told = self.serve("restarting", "r-1a2b3c4", "exit 3 <script>")
        self.assertIn("↻ restarting", told)
        self.assertIn("Server exit 3 <script>", told.replace("Server", "Server "))

    def test_it_tells_what_runs_since_when_what_happens_and_why_the_last_deployment_failed(self) -> None:
        parts = self.pages.parts(self.view("/").parts)
        web, docs = (" ".join(Text(parts[f"app-{name}"]).text.split()) for name in ("web", "docs"))
        self.assertIn("✓ deployed", web)
        self.assertIn("1a2b3c4 Say hello to everybody who comes by by Ada Lovelace · deployed 1 h ago", web)
        self.assertIn("nothing is under way", web)
        self.assertIn("The last deployment failed 9 min ago, at bad0bad: step 'test' failed: exit 1", web)
        self.assertRegex(docs, r"◐ starting for \d\.\d s · usually 2\.0 s")
        self.assertNotIn("Failed", docs)

    def test_a_paused_and_a_pinned_app_say_so(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.shown.journal.steer("web", Steering(True, True))))
        text = Text(self.pages.parts(self.view("/").parts)["app-web"]).text
        self.assertIn("paused", text)
        self.assertIn("pinned", text)

    def test_an_app_without_any_deployment_says_so(self) -> None:
        self.shown.apps.append(SteeredApp(self.shown.journal, "new"))
        self.assertIn("nothing deployed yet", Text(self.pages.parts(self.view("/").parts)["app-new"]).text)

    def test_without_apps_it_says_what_to_do(self) -> None:
        self.shown.apps.clear()
        self.assertIn("No app is configured yet", self.page("/").text)

    def test_a_change_renews_the_parts_that_show_it(self) -> None:
        lists = {"newest-deployments", "newest-deliveries"}
        self.assertEqual(self.renewed("/", Kind.APP, "web"), {"app-web"})
        self.assertEqual(self.renewed("/", Kind.DELIVERY, "x"), {"newest-deliveries"})
        self.assertEqual(self.renewed("/", Kind.DEPLOYMENT, self.ids["running"]), {"app-docs", *lists})
        self.assertEqual(self.renewed("/", Kind.DEPLOYMENT, "gone"), lists)

    def test_a_change_elsewhere_renews_nothing(self) -> None:
        running, failed = self.ids["running"], self.ids["failed"]
        self.assertFalse(self.renewed("/apps/web", Kind.DEPLOYMENT, running))
        self.assertFalse(self.renewed("/apps/web", Kind.APP, "docs"))
        self.assertFalse(self.renewed(f"/deployments/{running}", Kind.DEPLOYMENT, failed))
        self.assertFalse(self.renewed(f"/deliveries/{self.ids['ping']}", Kind.DELIVERY, "another"))
        self.assertFalse(self.renewed("/hooks", Kind.APP, "web"))
        self.assertIn("history", self.renewed("/apps/docs", Kind.DEPLOYMENT, running))
        self.assertIn("progress", self.renewed(f"/deployments/{running}", Kind.DEPLOYMENT, running))
        self.assertIn("deliveries", self.renewed("/deliveries", Kind.DELIVERY, "another"))
        self.assertIn("hooks", self.renewed("/hooks", Kind.DELIVERY, "another"))

    def renewed(self, path: str, kind: Kind, name: str) -> set[str]:
        return set(self.successResultOf(Deferred.fromCoroutine(self.views.renewed(path, Change(kind, name)))))


class Text(HTMLParser):
    """The text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(str(html))  # escaped text would escape what is added to it

    def handle_data(self, data: str) -> None:
        self.text += data


class AppTests(Rendering):
    def test_the_release_that_runs_has_no_button_to_go_back_to_it(self) -> None:
        self.shown.apps[0]._kept = ("r-1a2b3c4", "r-17b2c3d")
        page = self.page("/apps/web")
        backs = [fields for action, fields in page.forms if action.endswith("/rollback")]
        self.assertEqual([each["value"] for [_, each, _] in backs], ["r-17b2c3d"])

    def test_the_page_stands_when_git_cannot_tell_what_is_kept(self) -> None:
        self.shown.apps[0].fails = StepFailed("git is broken")
        self.assertIn("None is kept yet", self.page("/apps/web").text)

    def test_there_is_a_button_to_cancel_only_what_is_under_way(self) -> None:
        def actions(path: str) -> list[str]:
            return [action for action, _ in self.page(path).forms]

        self.assertIn(f"/deployments/{self.ids['running']}/cancel", actions("/apps/docs"))
        self.assertFalse([each for each in actions("/apps/web") if each.endswith("/cancel")])
        self.assertIn(f"/deployments/{self.ids['running']}/cancel", actions(f"/deployments/{self.ids['running']}"))
        self.assertFalse([each for each in actions(f"/deployments/{self.ids['failed']}") if each.endswith("/cancel")])

    def test_what_does_not_exist_is_refused(self) -> None:
        """P90."""
        for path in ("/apps/none", "/deployments/99999999999999999999", "/deployments/-1", "/deliveries/x"):
            failure = self.failureResultOf(Deferred.fromCoroutine(self.views.at(path)), Refused)
            self.assertEqual(failure.value.status, 404)
        for path in ("/x", "/apps", "/apps/web/deploy", "/deployments/x/y/z"):
            self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(self.views.at(path))))


class DeploymentTests(Rendering):
    def passed(self, name: str) -> list[tuple[str, str]]:
        given = self.view(f"/deployments/{self.ids[name]}").parts["progress"].given
        return [(each.phase.value, each.state) for each in given["passed"]]

    def test_what_is_under_way_shows_the_phases_that_usually_follow(self) -> None:
        self.assertEqual(
            self.passed("running"),
            [
                *[(phase, "past") for phase in ("queued", "fetching", "building")],
                ("starting", "now"),
                *[(phase, "ahead") for phase in ("checking", "swapping", "probation")],
            ],
        )

    def test_a_failed_one_shows_where_and_why_it_failed_and_what_to_do(self) -> None:
        self.assertEqual(self.passed("failed")[-1], ("probation", "ended"))
        text = self.page(f"/deployments/{self.ids['failed']}").text
        self.assertIn("step 'test' failed: exit 1", text)
        self.assertIn("E   AssertionError: 1 != 2", text)
        self.assertIn("web stays at 1a2b3c4", text)
        self.assertIn("What to do", text)

    def test_a_phase_that_took_much_longer_than_usual_is_marked(self) -> None:
        slow = self.successResultOf(
            Deferred.fromCoroutine(
                self.shown.deployed("web", Commit("5" * 40, "s", "a"), Outcome.DEPLOYED, at=NOW, took=90)
            )
        )
        self.assertIn("slow", self.page(f"/deployments/{slow}").text)
        self.assertNotIn("slow", self.page(f"/deployments/{self.ids['good']}").text)

    def test_of_a_huge_log_the_end_is_shown_and_the_whole_is_a_link_away(self) -> None:
        """P79."""
        self.shown.log(self.ids["good"], "a line of a long log\n" * 200_000)
        html = self.html(f"/deployments/{self.ids['good']}")
        self.assertLess(len(html), 120_000)
        self.assertIn(f'href="/deployments/{self.ids["good"]}/log"', html)
        self.assertIn("without the first 4037 KiB", html)

    def test_its_colours_are_classes_and_its_titles_are_gone(self) -> None:
        html = self.html(f"/deployments/{self.ids['failed']}")
        self.assertIn('<span class="c-green">ok</span> &lt;script&gt;', html)
        self.assertIn('<span class="c-red t-bold">FAILED</span> x', html)


class DeliveryTests(Rendering):
    def test_who_misses_a_push_is_told_where_to_look(self) -> None:
        text = self.page("/deliveries").text
        self.assertIn("My push is not in this list", text)
        self.assertIn("hookdeploy doctor", text)

    def test_it_says_why_a_push_did_not_deploy(self) -> None:
        self.assertIn("nothing was deployed: no app deploys", self.page(f"/deliveries/{self.ids['ignored']}").text)
        self.assertIn("1a2b3c4 runs already", self.page(f"/deliveries/{self.ids['delivery']}").text)


class StrictTests(Rendering):
    def test_a_name_that_is_not_given_is_a_fault_of_ours(self) -> None:
        view = replace(self.view("/hooks"), parts={"x": Part("hooks", {})})
        with self.assertRaises(UndefinedError):
            self.pages.parts(view.parts)

    def test_no_template_marks_a_text_as_safe(self) -> None:
        templates = Path(logtail.__file__).parent / "templates"
        for path in templates.rglob("*.html"):
            self.assertNotRegex(path.read_text(), r"\|\s*safe|autoescape|\sstyle=|\son\w+=", path.name)

    def test_a_notice_is_said_by_its_name_only(self) -> None:
        said = self.pages.page(self.view("/"), path="/", notice="pin")
        self.assertIn("Pinned: what arrives is written down", said)
        self.assertNotIn("visit", self.pages.page(self.view("/"), path="/", notice="visit evil.example"))


class CommitLinkTests(SynchronousTestCase):
    def link(self, repository: str | None) -> str | None:
        app = SteeredApp(Shown(Path(tempfile.gettempdir()), Clock()).journal)
        app.repository = repository
        return commit_link(app, "1a2b3c4")

    def test_it_leads_to_the_commit_at_the_repositorys_host(self) -> None:
        self.assertEqual(self.link("https://github.com/acme/web.git"), "https://github.com/acme/web/commit/1a2b3c4")
        self.assertEqual(self.link("https://bitbucket.org/acme/web"), "https://bitbucket.org/acme/web/commits/1a2b3c4")

    def test_there_is_none_where_no_page_of_it_is_known(self) -> None:
        for repository in (None, "git@github.com:a/b", "http://a.example/b", "/srv/git/web", "javascript:alert(1)"):
            self.assertIsNone(self.link(repository))


class ColourTests(SynchronousTestCase):
    def test_colours_and_marks_become_classes(self) -> None:
        shown, style = coloured("a\x1b[1;31mb\x1b[22mc\x1b[0md\x1b[38;5;46me\x1b[38;2;0;0;255mf\x1b[39mg")
        self.assertEqual(
            shown,
            'a<span class="c-red t-bold">b</span><span class="c-red">c</span>d'
            '<span class="c-green">e</span><span class="c-blue">f</span>g',
        )
        self.assertEqual(style, PLAIN)

    def test_a_style_goes_on_in_the_next_piece(self) -> None:
        _, style = coloured("\x1b[4;33mx")
        self.assertEqual(coloured("y", Style.named(style.classes))[0], '<span class="c-yellow t-underline">y</span>')

    def test_a_style_that_is_none_is_plain(self) -> None:
        self.assertEqual(Style.named('"><script> c-x t-y onload'), PLAIN)

    @given(st.lists(st.sampled_from(["\x1b[", "3", "8", ";", "5", "m", "1", "<b>", '"', "\x1b]0;", "\x07", "é", "\n"])))
    def test_whatever_comes_out_is_text_in_spans(self, pieces: list[str]) -> None:
        shown, _ = coloured("".join(pieces))
        rest = re.sub(r'<span class="[a-z -]+">|</span>', "", shown)
        self.assertNotRegex(rest, '[<>"\x00-\x08\x0b-\x1f]')


class LogTailTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.logs = Path(tempfile.mkdtemp())
        self.addCleanup(rmtree, self.logs)

    def test_pieces_that_follow_each_other_give_the_whole(self) -> None:
        file, shown, place, style = self.logs / "x.log", "", 0, PLAIN
        for text in ("one\ntw", "o\n\x1b[31mth", "ree\nfo", "ur\n"):
            with file.open("a") as log:
                log.write(text)
            piece = logtail.since(self.logs, "x", place, style)
            self.assertEqual(piece.start, place)
            shown, place, style = shown + piece.shown, piece.end, piece.style
        self.assertEqual(Text(shown).text, "one\ntwo\nthree\nfour\n")
        self.assertIn('<span class="c-red">four', shown)

    def test_a_log_without_a_file_is_empty(self) -> None:
        self.assertEqual((logtail.tail(self.logs, "x").shown, logtail.whole(self.logs, "x")), ("", ""))

    def test_one_endless_line_is_shown_too(self) -> None:
        (self.logs / "x.log").write_text("x" * 1_000_000)
        self.assertEqual(len(logtail.tail(self.logs, "x").shown), logtail.SHOWN)

    def test_who_was_away_for_long_gets_the_end(self) -> None:
        (self.logs / "x.log").write_text("0123456789\n" * 100_000)
        piece = logtail.since(self.logs, "x", 11, PLAIN)
        self.assertEqual((piece.end, piece.start % 11), (1_100_000, 0))
        self.assertGreater(piece.start, 11)


class ChartTests(SynchronousTestCase):
    def one(self, outcome: Outcome, took: float) -> Deployment:
        return Deployment(
            "x", "web", Trigger.PUSH, Phase.DONE, 0.0, outcome=outcome, started_at=1.0, finished_at=1.0 + took
        )

    def test_the_newest_is_at_the_right_and_no_bar_leaves_the_picture(self) -> None:
        ones = [self.one(Outcome.FAILED, 9.0), *(self.one(Outcome.DEPLOYED, float(n)) for n in range(80))]
        chart = chart_of(ones)
        assert chart is not None
        self.assertEqual((len(chart.bars), chart.bars[-1].marked, chart.bars[-2].marked), (MOST, True, False))
        self.assertTrue(all(0 <= bar.x <= WIDTH - 12 and 0 < bar.y < HEIGHT for bar in chart.bars))

    def test_it_says_in_words_what_it_shows(self) -> None:
        chart = chart_of([self.one(Outcome.FAILED, 9.0), self.one(Outcome.DEPLOYED, 2.0)])
        assert chart is not None
        self.assertEqual(chart.words, "The last 2 deployments: 1 deployed, 1 failed. A good one usually takes 2.0 s.")

    def test_without_anything_that_took_time_there_is_none(self) -> None:
        self.assertIsNone(chart_of([self.one(Outcome.UNCHANGED, 0.0), self.one(Outcome.SUPERSEDED, 1.0)]))


class WordTests(SynchronousTestCase):
    def test_lengths_of_time(self) -> None:
        lengths = (None, 0.04, 9.94, 12.3, 300, 83, 3720)
        self.assertEqual(
            [words.took(each) for each in lengths], ["", "0.0 s", "9.9 s", "12 s", "5 min", "1 min 23 s", "1 h 02 min"]
        )

    def test_ages(self) -> None:
        ages = (-5, 3, 40, 61, 7300, 200_000)
        self.assertEqual(
            [words.ago(NOW - each, NOW) for each in ages],
            ["just now", "just now", "40 s ago", "1 min ago", "2 h ago", "2 d ago"],
        )

    def test_every_outcome_and_phase_has_a_sign_and_a_word(self) -> None:
        for outcome in Outcome:
            badge = words.badge_of(Deployment("x", "web", Trigger.PUSH, Phase.DONE, 0.0, outcome=outcome))
            self.assertTrue(badge.sign and badge.word)
