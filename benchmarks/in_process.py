"""The engine without HTTP around it: the same figures, from inside its process.

Reads orders from standard input, one JSON object a line, and answers each with a line: its seconds.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from apex_pipelines.platform.warehouse.engine import Engine
from apex_pipelines.settings import Settings


def main() -> None:
    engine = Engine(Settings(home=Path(sys.argv[1])))
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        with engine.connected() as connection:
            began = time.perf_counter()
            connection.query(order["text"].encode(), order["format"])
            print(time.perf_counter() - began, flush=True)
    engine.close()


if __name__ == "__main__":
    main()
