"""Forgejo's webhooks: Gitea's, under headers of its own name.

The source: https://codeberg.org/forgejo/forgejo/src/branch/forgejo/services/webhook/shared/payloader.go
"""

from __future__ import annotations

from twisted_hook.forges.gitea import Gitea

FORGEJO = Gitea(b"forgejo")
