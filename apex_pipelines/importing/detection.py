"""Which built-in mapping fits a file, judged by its first lines."""

from __future__ import annotations

import csv
from itertools import islice

from apex_pipelines.importing.errors import MappingProblem
from apex_pipelines.importing.mapping import BUILT_IN, Mapping, built_in_names, load_mapping
from apex_pipelines.importing.readers import Source, csv_header, parse_web_log_line

_SAMPLE_LINES = 200
# A log may hold broken lines, at its start too; a file that is mostly something else is no log.
_MIN_SHARE = 0.5


def detect_mapping(source: Source) -> Mapping:
    """The built-in mapping that fits. Reads from `source`; open it again afterwards.

    Raises
    ------
    MappingProblem
        If none fits, or more than one does.
    """
    sample = [
        (raw or b"").decode("utf-8", "backslashreplace")
        for _, raw in islice(source.lines(), _SAMPLE_LINES)
        if raw is None or raw.strip()
    ]
    fitting = [mapping for mapping in map(load_mapping, built_in_names()) if _fits(mapping, sample)]
    if len(fitting) == 1:
        return fitting[0]
    found = " and ".join(mapping.name for mapping in fitting) or "none"
    first = sample[0][:80] if sample else ""
    raise MappingProblem(
        f"{source.path}: {found} of the built-in mappings ({', '.join(built_in_names())}) fits; "
        f"it begins with {first!r}. Name a mapping, or write one: {BUILT_IN / 'cdnow.toml'} is an example"
    )


def _fits(mapping: Mapping, sample: list[str]) -> bool:
    if not sample:
        return False
    if mapping.format == "web-log":
        return sum(parse_web_log_line(line) is not None for line in sample) >= _MIN_SHARE * len(sample)
    if mapping.format == "csv":
        try:
            header, _ = csv_header(sample[0], mapping.delimiter)
        except csv.Error:
            return False
        return set(mapping.columns) <= set(header)
    return False
