"""Accounts are found by their names, and what cannot be is told in words."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.accounts import NOBODY
from twisted_hook.accounts import Account, NeedsRoot, NoSuchAccount, account_of, to_become

OURS = pwd.getpwuid(os.geteuid()).pw_name


class AccountTests(SynchronousTestCase):
    def test_an_account_is_found_with_its_group_and_its_home(self) -> None:
        account = Account("nobody", NOBODY.pw_uid, NOBODY.pw_gid, Path(NOBODY.pw_dir))
        self.assertEqual(account_of("nobody"), account)

    def test_an_account_that_is_not_there_is_named(self) -> None:
        for name in ("no-such-account", "", "nob\0ody", "nob\ud800ody", "65534"):
            error = self.assertRaises(NoSuchAccount, account_of, name)
            self.assertEqual(str(error), f"there is no account {name!r} on this machine")

    def test_there_is_nothing_to_become_for_our_own_account(self) -> None:
        for name in (None, OURS):
            self.assertIsNone(to_become(name))

    def test_root_becomes_any_account_and_nobody_else_does(self) -> None:
        self.patch(os, "geteuid", lambda: 0)
        self.assertEqual(to_become("nobody"), account_of("nobody"))
        self.patch(os, "geteuid", lambda: NOBODY.pw_uid + 1)
        error = self.assertRaises(NeedsRoot, to_become, "nobody")
        self.assertEqual(str(error), "only root can run a command as nobody")
        self.assertRaises(NoSuchAccount, to_become, "no-such-account")
