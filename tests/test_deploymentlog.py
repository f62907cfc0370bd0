"""A deployment's log is capped, masked and fit to be shown, and never fails the deployment."""

from __future__ import annotations

import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.deploymentlog import CAP, FileLog
from twisted_hook.redaction import MASK, CleaningStream, RedactingStream, Redactor, colourless

NOON = 12 * 3600.0
SECRET = "correct horse battery staple"


class FileLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "deployment.log"
        self.log = self.open()

    def open(self) -> FileLog:
        log = FileLog(self.path, Redactor([SECRET]), lambda: NOON)
        self.addCleanup(log.close)
        return log

    def text(self) -> str:
        return self.path.read_text("utf-8")

    def logged(self, *chunks: bytes) -> str:
        self.path.unlink(missing_ok=True)
        log = self.open()
        for chunk in chunks:
            log.write(chunk)
        log.close()
        return self.text()

    def test_headings_and_output_stand_in_their_order(self) -> None:
        self.log.heading("$ make")
        self.log.write(b"one\n")
        self.log.heading("$ test")
        self.log.write(b"two\n")
        self.log.close()
        self.assertEqual(self.text(), "12:00:00 $ make\none\n12:00:00 $ test\ntwo\n")

    def test_what_was_written_can_be_read_at_once(self) -> None:
        self.log.write(b"one\n")
        self.assertEqual(self.text(), "one\n")

    def test_a_heading_begins_a_line_of_its_own(self) -> None:
        self.log.write(b"no newline")
        self.log.heading("$ test")
        self.assertEqual(self.text(), "no newline\n12:00:00 $ test\n")

    def test_only_the_owner_may_read_it(self) -> None:
        self.log.heading("$ make")
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_a_log_in_which_nothing_was_written_is_no_file(self) -> None:
        self.log.close()
        self.assertFalse(self.path.exists())

    def test_it_can_be_written_on_after_it_was_closed(self) -> None:
        self.log.heading("first")
        self.log.close()
        self.log.heading("second")
        self.assertEqual(self.text(), "12:00:00 first\n12:00:00 second\n")

    def test_a_secret_is_masked_in_headings_and_output_also_when_it_is_split(self) -> None:
        """P80."""
        self.log.heading(f"$ login {SECRET}")
        for at in range(0, 2 * len(SECRET), 5):
            self.log.write((SECRET * 2).encode()[at : at + 5])
        self.log.close()
        self.assertEqual(self.text(), f"12:00:00 $ login {MASK}\n{MASK}{MASK}\n")

    def test_what_escape_sequences_keep_apart_is_masked_as_well(self) -> None:
        """P80: as a search shows it that paints what it has found."""
        half = len(SECRET) // 2
        for apart in (b"\x1b[31m", b"\x1b[01;31m\x1b[K", b"\x1b]0;title\x07", b"\x1b[m" * 9):
            printed = SECRET[:half].encode() + apart + SECRET[half:].encode()
            for at in range(len(printed)):
                self.assertEqual(colourless(self.logged(printed[:at], printed[at:])), f"{MASK}\n")

    def test_a_secret_is_not_put_together_from_two_commands(self) -> None:
        self.log.write(SECRET[:5].encode())
        self.log.heading("next")
        self.log.write(SECRET[5:].encode())
        self.log.close()
        self.assertEqual(self.text(), f"{SECRET[:5]}\n12:00:00 next\n{SECRET[5:]}\n")

    def test_characters_and_escape_sequences_that_are_split_come_out_right(self) -> None:
        """P79."""
        whole = "\x1b[1;31mgrün\x1b[0m \x1b]0;title\x07€\r\n".encode()
        logged = self.logged(*(whole[at : at + 1] for at in range(len(whole))))
        self.assertEqual(logged, "\x1b[1;31mgrün\x1b[0m €\n\x1b[0m")
        self.assertEqual(colourless(logged), "grün €\n")

    def test_colours_stay_and_end_with_the_output_that_has_them(self) -> None:
        self.log.write(b"\x1b[2J\x1b[1;31mred")
        self.log.heading("$ next")
        self.log.write(b"plain\n")
        self.log.close()
        self.assertEqual(self.text(), "\x1b[1;31mred\x1b[0m\n12:00:00 $ next\nplain\n")

    def test_no_colour_is_cut_in_half(self) -> None:
        self.log.write(b"x" * (CAP - 3) + b"\x1b[1;31mred")
        self.log.close()
        self.assertEqual(self.text()[CAP - 4 :], "x\n[truncated: 10 bytes more]\n")

    @given(st.lists(st.binary(max_size=8), max_size=8))
    def test_whatever_a_command_prints_can_be_displayed(self, chunks: list[bytes]) -> None:
        """P79: invalid UTF-8 and escape sequences."""
        shown = colourless(self.logged(*chunks, b"."))
        self.assertTrue(all(c.isprintable() or c in "\t\n" or ord(c) > 0x9F for c in shown))

    def test_output_is_cut_at_the_cap_and_says_how_much_is_missing(self) -> None:
        """P79."""
        self.log.write(b"x" * (CAP - 10))
        self.log.write(b"y" * 30)
        self.log.write(b"z" * 30)
        self.log.close()
        self.assertEqual(self.text()[CAP - 10 :], "y" * 10 + "\n[truncated: 50 bytes more]\n")

    def test_control_bytes_do_not_make_it_longer_than_the_cap(self) -> None:
        """P79: each of these bytes is shown as three."""
        self.log.write(b"\0" * CAP)
        self.log.close()
        self.assertLess(self.path.stat().st_size, CAP + 100)
        self.assertIn("[truncated: ", self.text()[-100:])

    def test_no_character_is_cut_in_half_and_nothing_follows_a_gap(self) -> None:
        self.log.write(b"x" * (CAP - 2))
        self.log.write("€".encode())
        self.log.write(b"y")
        self.log.close()
        self.assertEqual(self.text()[CAP - 3 :], "x\n[truncated: 4 bytes more]\n")

    def test_headings_are_kept_beyond_the_cap(self) -> None:
        self.log.write(b"x" * CAP)
        self.log.heading("failed")
        self.log.write(b"more\n")
        self.log.heading("over")
        self.assertEqual(self.text()[CAP:], "\n12:00:00 failed\n[truncated: 5 bytes more]\n12:00:00 over\n")

    def test_the_attempts_of_one_deployment_share_the_cap(self) -> None:
        self.log.write(b"x" * CAP)
        self.log.close()
        again = self.open()
        again.heading("again")
        again.write(b"more\n")
        again.close()
        self.assertEqual(self.text()[CAP + 1 :], "12:00:00 again\n[truncated: 5 bytes more]\n")

    def test_beyond_the_cap_a_flood_costs_nothing(self) -> None:
        """P79: 300 MB that nobody will see."""
        self.log.write(b"x" * CAP)
        self.patch(RedactingStream, "feed", None)
        self.patch(CleaningStream, "feed", None)
        for _ in range(3):
            self.log.write(b"\x1b[31mcorrect horse" * 500)
        self.assertEqual(self.path.stat().st_size, CAP)

    def test_a_log_that_cannot_be_written_is_given_up_and_says_so_once(self) -> None:
        self.path.mkdir()
        with capturedLogs() as events:
            for _ in range(3):
                self.log.heading("$ make")
                self.log.write(b"output\n")
            self.log.close()
        self.assertEqual(len(events), 1)
        self.assertIn(str(self.path), str(events[0]["path"]))

    def test_a_disk_that_is_full_fails_nothing(self) -> None:
        self.path.symlink_to("/dev/full")
        with capturedLogs() as events:
            self.log.write(b"output\n")
            self.log.heading("$ make")
            self.log.close()
        self.assertEqual([str(event["error"]) for event in events], ["[Errno 28] No space left on device"])
