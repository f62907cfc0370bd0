"""Forgejo's webhooks: Gitea's, under headers of its own name."""

from __future__ import annotations

from twisted_hook.forges.gitea import Gitea

FORGEJO = Gitea(b"forgejo")
