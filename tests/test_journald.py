"""The log as the journal reads it."""

from __future__ import annotations

import io
import os
import tempfile

from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.journald import Observer, marked, reads


class Lines(SynchronousTestCase):
    """What an observer writes."""

    def setUp(self) -> None:
        self.stream = io.StringIO()
        self.log = Logger(observer=Observer(self.stream))

    def lines(self) -> list[str]:
        return self.stream.getvalue().split("\n")

    def test_every_level_has_the_priority_of_the_system_log(self) -> None:
        for level in LogLevel.iterconstants():
            self.log.emit(level, "at {name}", name=level.name)
        self.assertEqual(self.lines(), ["<7>at debug", "<6>at info", "<4>at warn", "<3>at error", "<2>at critical", ""])

    def test_each_line_of_a_traceback_has_it(self) -> None:
        try:
            raise ValueError("one\n\ntwo")
        except ValueError:
            self.log.failure("it {what}", Failure(), what="failed")
        lines = self.lines()
        self.assertEqual((lines[0], lines[-4:]), ("<2>it failed", lines[-4:]))
        self.assertIn("<2>\tTraceback (most recent call last):", lines)
        self.assertEqual([line for line in lines[:-1] if not line.startswith("<2>")], [])

    def test_a_line_of_somebody_elses_cannot_choose_its_priority_nor_pass_for_one_of_ours(self) -> None:
        self.log.info("{said}", said="all is well\n<0>the machine is on fire")
        self.assertEqual(self.lines(), ["<6>all is well", "<6>\t<0>the machine is on fire", ""])

    def test_what_is_no_unicode_is_written_all_the_same(self) -> None:
        self.log.info("{said}", said="\udcff")
        self.assertEqual(self.lines(), ["<6>\\udcff", ""])


class WhoReads(SynchronousTestCase):
    """Whether it is the journal."""

    def test_it_is_the_stream_of_that_device_and_inode(self) -> None:
        with tempfile.TemporaryFile() as file:
            there = os.fstat(file.fileno())
            self.assertTrue(reads(file.fileno(), {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino}"}))
            self.assertFalse(reads(file.fileno(), {"JOURNAL_STREAM": f"{there.st_dev}:{there.st_ino + 1}"}))
            self.assertFalse(reads(file.fileno(), {}))
        self.assertFalse(reads(10**6, {"JOURNAL_STREAM": "1:2"}))

    def test_an_error_is_marked_as_one(self) -> None:
        self.assertEqual(marked("one\ntwo"), "<3>one\n<3>two")
