"""Secrets are masked and control bytes made harmless, however a stream is cut into chunks."""

from __future__ import annotations

import time
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from twisted_hook.redaction import MASK, CleaningStream, RedactingStream, Redactor, clean, clean_but_colours, colourless

# Few letters, so that beginnings of secrets, overlaps and the mask's own brackets come up all the time.
SECRETS = st.lists(st.text("ab[]", min_size=1, max_size=5), min_size=1, max_size=3)
CHUNKS = st.lists(
    st.text("abc[]", max_size=6).map(str.encode) | st.sampled_from([b"\x1b[m", b"\x1b[31m", b"\x1b", b"\x1b[3", b"1m"]),
    max_size=6,
)
TERMINAL = st.lists(
    st.sampled_from(
        [
            *(b"\x1b", b"[", b"]", b"3", b";", b"m", b"(", b"B", b"\\", b"\x07", b"\r", b"\n", b" ", b"x", b"\x9b"),
            *(b"\x1b[31m", b"\x1b]0;title", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\xff", "\u202e".encode()),
            *(b"1" * 70, b"t" * 2050, b" " * 9),
        ]
    ),
    max_size=24,
)


def masked(stream: RedactingStream, chunks: list[bytes]) -> bytes:
    return b"".join([*(stream.feed(chunk) for chunk in chunks), stream.flush()])


def cleaned(chunks: list[bytes]) -> str:
    stream = CleaningStream()
    return "".join([*(stream.feed(chunk) for chunk in chunks), stream.flush()])


class MaskTests(SynchronousTestCase):
    def test_every_secret_is_masked_wherever_it_stands(self) -> None:
        redactor = Redactor(["hunter2", "token"])
        self.assertEqual(redactor.mask(b"token=hunter2hunter2;"), f"{MASK}={MASK}{MASK};".encode())

    def test_of_two_secrets_that_begin_alike_the_longer_is_masked(self) -> None:
        self.assertEqual(Redactor(["abc", "abcdef"]).mask(b"abcdef abc"), f"{MASK} {MASK}".encode())

    def test_a_secret_is_not_read_as_a_pattern(self) -> None:
        self.assertEqual(Redactor(["a.c"]).mask(b"abc a.c"), f"abc {MASK}".encode())

    def test_a_colour_or_any_other_sequence_within_a_secret_does_not_hide_it(self) -> None:
        """P80: as a search shows it that paints what it has found."""
        redactor = Redactor(["hunter2", "a\nb"])
        self.assertEqual(
            redactor.mask(b"<\x1b[1mhun\x1b[31mter\x1b[m2\x1b[m>"), b"<\x1b[1m[secret]\x1b[31m\x1b[m\x1b[m>"
        )
        self.assertEqual(redactor.text("<hun\x1b[31m\x1b[Kter\x1b]0;title\x072> a\r\nb"), f"<{MASK}> {MASK}")

    def test_a_mask_stays_what_it_is(self) -> None:
        for secret in ("secret", "[secret]", "]a", "t]a"):
            redactor = Redactor([secret])
            once = redactor.mask(f"a{secret}a".encode())
            self.assertEqual(redactor.mask(once), once)

    def test_an_empty_secret_masks_nothing(self) -> None:
        self.assertEqual(Redactor([""]).mask(b"abc"), b"abc")

    def test_without_secrets_nothing_is_masked_or_held_back(self) -> None:
        stream = Redactor([]).stream()
        self.assertEqual((stream.feed(b"abc"), stream.flush()), (b"abc", b""))

    def test_a_secret_of_many_lines_is_masked(self) -> None:
        key = "-----BEGIN KEY-----\nAAAA\n-----END KEY-----"
        self.assertEqual(Redactor([key]).text(f"key: {key}!"), f"key: {MASK}!")

    def test_a_secret_outside_of_ascii_is_masked(self) -> None:
        self.assertEqual(Redactor(["pässwörd"]).text("it is pässwörd"), f"it is {MASK}")

    def test_a_secret_that_is_no_utf_8_is_masked(self) -> None:
        """As ``os.environ`` gives it: with a surrogate for every byte that is none."""
        self.assertEqual(Redactor(["caf\udce9"]).mask(b"in caf\xe9"), f"in {MASK}".encode())

    def test_a_text_with_surrogates_can_be_shown(self) -> None:
        self.assertEqual(Redactor(["hunter2"]).text("\ud800 hunter2"), f"? {MASK}")


class RedactingStreamTests(SynchronousTestCase):
    """P80: a declared secret that is printed appears masked."""

    @given(SECRETS, CHUNKS)
    @example(["ab", "abc"], [b"ab", b"c"])
    @example(["]a"], [b"]a", b"a"])
    @example(["aab"], [b"a", b"a", b"a", b"b"])
    @example(["ab", "abc"], [b"ab\x1b", b"[31mc"])
    @example(["ma"], [b"\x1b[31", b"ma"])
    def test_however_a_stream_is_cut_the_same_is_masked(self, secrets: list[str], chunks: list[bytes]) -> None:
        redactor = Redactor(secrets)
        self.assertEqual(masked(redactor.stream(), chunks), redactor.mask(b"".join(chunks)))

    def test_colours_without_end_are_not_held_back_without_end(self) -> None:
        stream = Redactor(["secret"]).stream()
        stream.feed(b"sec")
        shown = b"".join(stream.feed(b"\x1b[31m" * 100) for _ in range(100))
        self.assertGreater(len(shown), 40_000)

    @given(st.binary(min_size=1, max_size=40), st.integers(0, 40), st.integers(0, 40))
    def test_a_secret_cut_in_three_is_masked(self, around: bytes, one: int, other: int) -> None:
        secret = b"correct horse battery staple"
        first, second = sorted((one, other))
        text = around + secret + around
        chunks = [text[:first], text[first:second], text[second:]]
        self.assertNotIn(secret, masked(Redactor([secret.decode()]).stream(), chunks))

    def test_what_cannot_be_a_secret_any_more_is_shown_at_once(self) -> None:
        stream = Redactor(["secret"]).stream()
        self.assertEqual([stream.feed(b"a sec"), stream.feed(b"ond line\n")], [b"a ", b"second line\n"])

    def test_a_secret_within_what_was_held_back_is_masked_at_the_end(self) -> None:
        stream = Redactor(["ab", "abc"]).stream()
        self.assertEqual((stream.feed(b"ab"), stream.flush()), (b"", MASK.encode()))

    def test_a_stream_is_as_good_as_new_after_its_end(self) -> None:
        stream = Redactor(["abc"]).stream()
        stream.feed(b"ab")
        stream.flush()
        self.assertEqual(stream.feed(b"c"), b"c")

    def test_long_secrets_do_not_make_a_stream_slow(self) -> None:
        """P79: a private key among the secrets, and a flood of output."""

        def seconds(length: int) -> float:
            stream = Redactor(["-" * length + "x", "a" * length, "b" * length]).stream()
            flood, started = b"abcdefgh-" * 900, time.process_time()
            for _ in range(100):
                stream.feed(flood)
            return time.process_time() - started

        self.assertLess(seconds(4000), 80 * seconds(4))


class CleanTests(SynchronousTestCase):
    """P79, T27: what a program prints cannot move the cursor, set a title or turn the text around."""

    def test_colours_titles_links_and_character_sets_vanish(self) -> None:
        for text, shown in (
            ("\x1b[1;31mred\x1b[0m", "red"),
            ("\x1b]0;a title\x07text", "text"),
            ("\x1b]8;;https://example.com\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b(B\x1b[mplain", "plain"),
            ("\x1b7\x1b=saved\x1b8\x1bc", "saved"),
            ("\x1b[?25lhidden\x1b[?25h", "hidden"),
        ):
            self.assertEqual(clean(text), shown)

    def test_tabs_and_newlines_stay(self) -> None:
        self.assertEqual(clean("a\tb\nc\r\nd\re"), "a\tb\nc\nd\ne")

    def test_other_control_characters_are_replaced(self) -> None:
        for character in ("\0", "\x08", "\x1b", "\x7f", "\x9b", "\u2028", "\u202e", "\u2066"):
            self.assertEqual(clean(f"a{character}\n"), "a\N{REPLACEMENT CHARACTER}\n")

    def test_half_characters_are_replaced(self) -> None:
        """A lone surrogate could not be encoded by whoever writes the text."""
        for character in ("\ud800", "\udbff", "\udc00", "\udce9", "\udfff"):
            self.assertEqual(clean(f"a{character}b"), "a\N{REPLACEMENT CHARACTER}b")
        self.assertEqual(clean("\N{PILE OF POO}"), "\N{PILE OF POO}")
        clean("".join(map(chr, range(0xD7FF, 0xE001)))).encode()

    def test_a_title_without_an_end_does_not_hide_what_follows(self) -> None:
        self.assertEqual(clean("\x1b]0;title\nan error\n"), "0;title\nan error\n")
        self.assertIn("an error", clean("\x1b]" + "x" * 5000 + "an error"))

    @given(st.text(st.characters(), max_size=40))
    def test_nothing_that_a_terminal_obeys_is_left(self, text: str) -> None:
        left = {c for c in clean(text) if unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in BIDI}
        self.assertLessEqual(left, {"\t", "\n"})

    @given(TERMINAL)
    def test_what_is_clean_stays_as_it_is(self, pieces: list[bytes]) -> None:
        once = clean(b"".join(pieces).decode("utf-8", "replace"))
        self.assertEqual(clean(once), once)

    def test_hostile_sequences_do_not_take_long(self) -> None:
        started = time.process_time()
        for piece in ("\x1b[", "\x1b[1", "\x1b]", "\x1b]x", "\x1b ", "\x1b[" + "1" * 64, "\x1b]" + "x" * 2047, "\r"):
            clean(piece * (100_000 // len(piece)))
        self.assertLess(time.process_time() - started, 4.0)


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


class ColourTests(SynchronousTestCase):
    @given(TERMINAL)
    @example([b"\x1b", b"\x1b[31m"])
    @example([b"\x1b[", b"\x1b[31m", b"m"])
    @example([b"\x1b]0;title", b"\x1b[31m", b"\x07"])
    def test_without_its_colours_a_text_is_as_clean_as_ever(self, pieces: list[bytes]) -> None:
        """P79."""
        text = b"".join(pieces).decode("utf-8", "replace")
        self.assertEqual(colourless(clean_but_colours(text)), clean(text))

    def test_colours_stay_and_nothing_else_does(self) -> None:
        kept = "\x1b[1;38:5:9mred\x1b[0m\x1b[m"
        self.assertEqual(clean_but_colours(f"\x1b[2J\x1b]0;title\x07{kept}\x1b[31 m\x1b[>4m"), kept)

    @given(TERMINAL)
    def test_however_a_stream_is_cut_its_colours_are_alike(self, chunks: list[bytes]) -> None:
        stream = CleaningStream(clean_but_colours)
        shown = "".join([*(stream.feed(chunk) for chunk in chunks), stream.flush()])
        self.assertEqual(shown, clean_but_colours(b"".join(chunks).decode("utf-8", "replace")))


class CleaningStreamTests(SynchronousTestCase):
    """P79: characters and escape sequences that are split across chunks come out right."""

    @given(TERMINAL)
    @example([b"\x1b]0;title\x1b", b"\\x"])
    @example([b"\r", b"\n"])
    @example([b"\x1b", b"\r", b"\n"])
    @example([b"\x1b]0;title", b"\r", b"x\x07"])
    def test_however_a_stream_is_cut_it_is_cleaned_alike(self, chunks: list[bytes]) -> None:
        self.assertEqual(cleaned(chunks), clean(b"".join(chunks).decode("utf-8", "replace")))

    @given(st.binary(max_size=60))
    def test_byte_by_byte_is_as_good_as_all_at_once(self, data: bytes) -> None:
        pieces = [data[at : at + 1] for at in range(len(data))]
        self.assertEqual(cleaned(pieces), clean(data.decode("utf-8", "replace")))

    def test_a_character_in_two_halves_comes_out_whole(self) -> None:
        euro = "€".encode()
        self.assertEqual(cleaned([euro[:1], euro[1:]]), "€")

    def test_what_is_held_back_is_bounded(self) -> None:
        for piece in (b"\x1b]", b"\x1b[", b"\x1b"):
            stream = CleaningStream()
            stream.feed(piece)
            shown = "".join(stream.feed(b"1" * 1000) for _ in range(10))
            self.assertGreater(len(shown), 7000)

    def test_a_half_character_at_the_end_is_replaced(self) -> None:
        self.assertEqual(cleaned([b"a\xe2\x82"]), "a\N{REPLACEMENT CHARACTER}")
