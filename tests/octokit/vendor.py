"""Makes ``examples.json.xz`` from the npm package: ``npm pack @octokit/webhooks-examples`` and ``vendor.py FILE.tgz``.

Every example of github.com and of each version of GitHub Enterprise Server, under the name of its event, each once.
"""

from __future__ import annotations

import json
import lzma
import sys
import tarfile
from pathlib import Path

EXAMPLES = Path(__file__).with_name("examples.json.xz")


def examples(archive: Path) -> dict[str, list[object]]:
    """The examples in the package, in the order of its files."""
    found: dict[str, dict[str, object]] = {}
    with tarfile.open(archive) as package:
        for name in sorted(name for name in package.getnames() if name.endswith("/index.json")):
            member = package.extractfile(name)
            assert member is not None
            for event in json.load(member):
                known = found.setdefault(event["name"], {})
                known.update((json.dumps(each, sort_keys=True), each) for each in event["examples"])
    return {event: list(known.values()) for event, known in found.items()}


if __name__ == "__main__":
    compact = json.dumps(examples(Path(sys.argv[1])), ensure_ascii=False, separators=(",", ":"))
    EXAMPLES.write_bytes(lzma.compress(compact.encode(), preset=9 | lzma.PRESET_EXTREME))
