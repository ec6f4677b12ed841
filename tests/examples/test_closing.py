"""After `close` a client takes nothing more and leaves its file to the next one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.examples.conftest import built_python, built_typescript
from tests.importing.fault_server import FaultServer

# Closed while an answer is awaited. What is written then stands for the file of the next client.
_PYTHON = """
import sys, time
from pathlib import Path
sys.path.insert(0, str(Path({client!r}).parent))
from usage_client import UsageClient
file = Path({file!r})
usage = UsageClient({url!r}, "key", file)
usage.track("impressions", 1)
print(usage.close(0.3))
file.write_text("the next client's")
try:
    usage.track("impressions", 2)
except RuntimeError as error:
    print(error)
time.sleep(1.2)
print(usage.close())
"""
_TYPESCRIPT = """
import {{ writeFileSync }} from "node:fs";
import {{ setTimeout as sleep }} from "node:timers/promises";
import {{ UsageClient }} from {client!r};
const usage = new UsageClient({url!r}, "key", {{ queueFile: {file!r} }});
usage.track("impressions", 1);
console.log(await usage.close(300));
writeFileSync({file!r}, "the next client's");
try {{
  usage.track("impressions", 2);
}} catch (error) {{
  console.log(error.message);
}}
await sleep(1200);
console.log(await usage.close());
"""


@pytest.mark.parametrize(
    ("build", "script", "switch"),
    [(built_python, _PYTHON, "-c"), (built_typescript, _TYPESCRIPT, "--input-type=module")],
    ids=["python", "typescript"],
)
def test_a_closed_client_refuses_events_and_leaves_its_file_alone(
    build: Callable[[], list[str]], script: str, switch: str, tmp_path: Path
) -> None:
    language, client = build()
    file = tmp_path / "queue.ndjson"
    with FaultServer(delay_seconds=0.9) as server:
        text = script.format(client=client, url=server.url, file=str(file))
        command = [language, "-c", text] if switch == "-c" else [language, switch, "--eval", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout.splitlines() == ["1", "this client is closed; the event is not counted", "1"], (
        done.stderr
    )
    assert server.requests == 1
    assert file.read_text() == "the next client's"
