"""Text that was cut inside of an emoji is no JSON for the API; the app loses that event only."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.examples.conftest import built_python, built_typescript
from tests.importing.fault_server import FaultServer

_PYTHON = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path({client!r}).parent))
from usage_client import UsageClient
usage = UsageClient({url!r}, "key", Path({file!r}))
for note in ("before", "\\ud83d", "after"):
    print(usage.track("impressions", 1, {{"note": note}}))
print(usage.close())
"""
_TYPESCRIPT = """
import {{ UsageClient }} from {client!r};
const usage = new UsageClient({url!r}, "key", {{ queueFile: {file!r} }});
for (const note of ["before", "📈".slice(0, 1), "after"]) {{
  console.log(usage.track("impressions", 1, {{ note }}));
}}
console.log(await usage.close());
"""


@pytest.mark.parametrize(
    ("build", "script", "switch"),
    [(built_python, _PYTHON, "-c"), (built_typescript, _TYPESCRIPT, "--input-type=module")],
    ids=["python", "typescript"],
)
def test_an_event_with_half_an_emoji_holds_up_no_other(
    build: Callable[[], list[str]], script: str, switch: str, tmp_path: Path
) -> None:
    language, client = build()
    file = tmp_path / "queue.ndjson"
    with FaultServer() as server:
        text = script.format(client=client, url=server.url, file=str(file))
        command = [language, "-c", text] if switch == "-c" else [language, switch, "--eval", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    *ids, left = done.stdout.splitlines()
    assert left == "0", done.stderr
    assert list(server.events) == [ids[0], ids[2]]
    assert "malformed_event" in done.stderr
    assert ids[1] in done.stderr
    assert file.read_bytes() == b""
