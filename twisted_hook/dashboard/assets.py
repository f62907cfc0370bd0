"""The dashboard's own files: style sheet, script and icon, each under an address that holds a digest of its content.

Read once. What such an address has given stays true for ever, so that a browser asks for it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

_HERE = Path(__file__).parent / "static"
_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
FOREVER = b"public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    url: str
    body: bytes
    type: bytes


def load() -> Mapping[str, Asset]:
    """All of them, by their names."""
    return {path.name: _asset(path) for path in sorted(_HERE.iterdir()) if path.suffix in _TYPES}


def _asset(path: Path) -> Asset:
    body = path.read_bytes()
    return Asset(f"/static/{sha256(body).hexdigest()[:16]}/{path.name}", body, _TYPES[path.suffix])
