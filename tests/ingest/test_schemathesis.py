"""Thousands of requests made from the API's own document: none gets a 5xx, none an answer that is not in it.

Runs where schemathesis is installed; `SCHEMATHESIS` may name the program of another environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.client import Client

from apex_pipelines.customers.keys import issue_operator_key
from apex_pipelines.customers.tokens import issue_token, token_secret
from apex_pipelines.settings import Settings
from tests.ingest.conftest import CREATED, Account, Api
from tests.ingest.test_answers import NOW
from tests.ingest.webhook_bodies import SECRETS

PROGRAM = os.environ.get("SCHEMATHESIS") or shutil.which(
    "schemathesis", path=str(Path(sys.executable).parent)
)
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "unsupported_method",
)  # fmt: skip
# What it can't know: how NDJSON is written.
HOOKS = """
import schemathesis

@schemathesis.serializer("application/x-ndjson", "application/ndjson")
def ndjson(context, value):
    return value if isinstance(value, bytes) else str(value).encode()
"""


@pytest.mark.skipif(PROGRAM is None, reason="schemathesis is not installed")
def test_no_generated_request_gets_a_5xx_or_an_undocumented_answer(
    new_api: Callable[..., Api],
    account: Account,
    engine: sa.Engine,
    settings: Settings,
    warehouse: Client,
    tmp_path: Path,
) -> None:
    api = new_api(APEX_API_READS_PER_WINDOW="1000000", **SECRETS)
    with engine.begin() as connection:
        operator = issue_operator_key(connection, CREATED)
    token = issue_token(token_secret(settings), account.customer_id, NOW, timedelta(hours=1))
    (tmp_path / "hooks.py").write_text(HOOKS)
    for selection, key in (
        (r"--exclude-path-regex=/(events|current|analytics|limits)$", account.key),
        (r"--include-path-regex=/(current|analytics|limits)$", token),
        ("--include-path-regex=/events$", operator.plaintext),
    ):
        done = subprocess.run(
            [str(PROGRAM), "run", f"{api.url}/openapi.json", f"--checks={','.join(CHECKS)}",
             "--phases=examples,coverage,fuzzing", "--max-examples=50", "--seed=42", "--no-color", selection,
             "-H", f"Authorization: Bearer {key}"],
            cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
            env={"PATH": os.environ["PATH"], "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "Traceback" not in api.log.read_text()
