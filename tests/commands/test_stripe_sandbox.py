"""`apex stripe sandbox`: what it prints is enough to use it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import stripe

from apex_pipelines.settings import Settings, child_environment
from apex_pipelines.stripe.client import connect
from tests.conftest import free_port, stop, wait_until_up

APEX = str(Path(sys.executable).with_name("apex"))


def test_the_printed_settings_reach_it_and_a_second_one_is_refused(settings: Settings) -> None:
    port = free_port()
    command = [APEX, "stripe", "sandbox", "--port", str(port)]
    environment = {**os.environ, **child_environment(settings), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/_sandbox/ping", process)
        assert process.stdout is not None
        lines = [process.stdout.readline().decode() for _ in range(4)]
        printed = dict(re.findall(r"^(\w+)=(\S+)$", "".join(lines), re.MULTILINE))
        assert printed["STRIPE_WEBHOOK_SECRET"].startswith("whsec_")
        client = connect(
            Settings(
                stripe_api_base=printed["APEX_STRIPE_API_BASE"],
                stripe_secret_key=printed["STRIPE_SECRET_KEY"],
            )
        )
        assert isinstance(client.v1.customers.create({"name": "Ada"}), stripe.Customer)
        second = subprocess.run(
            [*command[:-1], str(free_port())], env=environment, capture_output=True, text=True, check=False
        )
        assert second.returncode == 1
        assert "another process serves" in second.stderr
    finally:
        stop(process)
