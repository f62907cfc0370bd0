"""Shared paths lead from every release to one place beside them, and never through a repository's own links."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.model import StepFailed
from twisted_hook.shared import Shared


class SharedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.app = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.app)
        self.tree = self.app / "releases" / "one"
        self.tree.mkdir(parents=True)
        self.directory = self.app / "shared"

    def link(self, *paths: str) -> None:
        Shared(self.directory, paths).link_into(self.tree, self.app / "replaced")

    def write(self, file: Path, text: str = "x\n") -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def test_a_path_without_a_dot_is_a_directory(self) -> None:
        self.link("media")
        self.assertTrue((self.directory / "media").is_dir())
        self.assertEqual((self.tree / "media").readlink(), Path("../../shared/media"))
        self.assertEqual((self.tree / "media").resolve(), self.directory.resolve() / "media")

    def test_a_path_with_a_slash_at_its_end_is_a_directory(self) -> None:
        self.link("cache.d/")
        self.assertTrue((self.tree / "cache.d").is_symlink())
        self.assertTrue((self.directory / "cache.d").is_dir())

    def test_a_path_with_a_dot_is_a_file_that_the_app_will_write(self) -> None:
        self.link("data/db.sqlite3")
        self.assertFalse((self.directory / "data" / "db.sqlite3").exists())
        (self.tree / "data" / "db.sqlite3").write_text("rows\n")
        self.assertEqual((self.directory / "data" / "db.sqlite3").read_text(), "rows\n")

    def test_the_first_release_brings_its_own_content_along(self) -> None:
        self.write(self.tree / "media" / "deep" / "logo")
        self.write(self.tree / "settings.ini")
        self.link("media", "settings.ini")
        self.assertEqual((self.tree / "media" / "deep" / "logo").read_text(), "x\n")
        self.assertEqual((self.directory / "settings.ini").read_text(), "x\n")
        self.assertFalse((self.app / "replaced").exists())

    def test_what_is_shared_already_is_never_touched(self) -> None:
        """Also where it is a link, by which a person has put it on another disk."""
        disk = self.app / "disk"
        self.write(disk / "mine", "mine\n")
        self.directory.mkdir()
        (self.directory / "media").symlink_to(disk)
        self.write(self.directory / "settings.ini", "mine\n")
        self.write(self.tree / "media" / "theirs")
        self.write(self.tree / "settings.ini", "theirs\n")
        self.link("media", "settings.ini")
        self.assertEqual(os.listdir(self.tree / "media"), ["mine"])  # noqa: PTH208
        self.assertEqual((self.tree / "settings.ini").read_text(), "mine\n")
        self.assertEqual((self.app / "replaced" / "0" / "theirs").read_text(), "x\n")

    def test_a_link_of_the_repositorys_is_replaced_and_what_it_leads_to_is_not(self) -> None:
        """P72."""
        outside = self.write(self.app / "outside", "precious\n")
        for name in (".env", "media"):
            (self.tree / name).symlink_to(outside)
        self.link(".env", "media")
        (self.tree / ".env").write_text("written by the app\n")
        self.assertEqual(outside.read_text(), "precious\n")
        self.assertTrue((self.directory / "media").is_dir())

    def test_a_parent_that_is_a_link_or_a_file_is_refused(self) -> None:
        """P72: nothing is written through it."""
        outside = self.app / "outside"
        (outside / "deep").mkdir(parents=True)
        (self.tree / "data").symlink_to(outside)
        self.write(self.tree / "file")
        for path, parent in (("data/media", "data"), ("data/deep/media", "data"), ("file/media", "file")):
            with self.assertRaises(StepFailed) as caught:
                self.link(path)
            self.assertIn(f"{path} cannot be linked, since {parent} in the tree", caught.exception.reason)
        self.assertEqual([path.name for path in outside.rglob("*")], ["deep"])

    def test_nothing_of_another_accounts_is_written_through_a_link(self) -> None:
        """T35: what is shared belongs to the app's own user, and we are root."""
        outside = self.app / "outside"
        outside.mkdir()
        self.directory.mkdir()
        (self.directory / "data").symlink_to(outside)
        self.write(self.tree / "data" / "job", "* * * * * root sh\n")
        for path in ("data/job", "data/media", "data/deep/media"):
            with self.assertRaises(StepFailed) as caught:
                Shared(self.directory, (path,), guarded=True).link_into(self.tree, self.app / "replaced")
            self.assertIn(f"{path} cannot be shared, since data in {self.directory} is no dir", caught.exception.reason)
        self.assertEqual(list(outside.iterdir()), [])
        self.link("data/job")  # a person's own link, to another disk
        self.assertTrue((outside / "job").is_file())

    def test_a_path_that_leads_elsewhere_is_refused(self) -> None:
        for path in ("/etc", "../other", "a/../../b", "", "."):
            with self.assertRaises(StepFailed):
                self.link(path)
        self.assertEqual(list(self.tree.iterdir()), [])

    def test_the_places_are_told_with_the_directories_above_them(self) -> None:
        places = Shared(self.directory, ("media", "data/deep/db.sqlite3")).places
        names = [str(place.relative_to(self.directory)) for place in places]
        self.assertEqual(names, ["media", "data", "data/deep", "data/deep/db.sqlite3"])
