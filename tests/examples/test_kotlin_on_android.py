"""What Android does otherwise than the JVM that the other tests run on."""

from __future__ import annotations

import ctypes
import ctypes.util
import re

import pytest

from tests.examples.conftest import EXAMPLES

PATTERN = re.compile(r'Regex\("""(.+)"""\)')


def test_icu_compiles_the_regular_expressions() -> None:
    name = ctypes.util.find_library("icui18n")
    if name is None or (version := re.search(r"\.so\.(\d+)$", name)) is None:
        pytest.skip("ICU's library is not installed")
    # ICU's functions carry its version: 72 has `uregex_open_72`.
    compile_pattern = getattr(ctypes.CDLL(name), f"uregex_open_{version[1]}")
    compile_pattern.restype = ctypes.c_void_p
    patterns = PATTERN.findall((EXAMPLES / "kotlin" / "UsageClient.kt").read_text())
    assert patterns
    for pattern in patterns:
        text, error = pattern.encode("utf-16-le"), ctypes.c_int(0)
        where = ctypes.create_string_buffer(80)
        compile_pattern(text, len(text) // 2, 0, where, ctypes.byref(error))
        assert error.value <= 0, pattern  # above zero is a failure, below a warning
