"""Applies a suite to rows, and says of each broken rule how many rows break it and which.

Belongs here: the one place that runs Great Expectations. Does not belong here: any rule (`suites.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

EXAMPLES = 5


class SuiteUnusable(RuntimeError):
    """A rule could not be applied at all, such as one about a column that is not there."""


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """One rule that rows break.

    Attributes
    ----------
    rows : int
        How many break it.
    examples : list of str
        The first of them: the offending value and what the row is found by.
    """

    rule: str
    rows: int
    examples: list[str]


def broken_rules(
    frame: pl.DataFrame, suite: Mapping[str, Expectation], named_by: tuple[str, ...]
) -> list[BrokenRule]:
    """The rules of `suite` that rows of `frame` break; none for no rows.

    Raises
    ------
    SuiteUnusable
        If a rule can't be applied.
    """
    if frame.is_empty():
        return []
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("extract").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame.to_pandas()})
    for rule, expectation in suite.items():
        expectation.meta = {"rule": rule}
    validated = batch.validate(
        gx.ExpectationSuite("rules", expectations=list(suite.values())),
        result_format={
            "result_format": "SUMMARY",
            "unexpected_index_column_names": list(named_by),
            "partial_unexpected_count": EXAMPLES,
        },
    )
    broken = []
    for result in validated.results:
        config = result.expectation_config
        if result.success or config is None:
            continue
        rule = config.meta["rule"]
        if "unexpected_count" not in result.result:
            raise SuiteUnusable(f"rule {rule} can't be applied: {result.exception_info}")
        examples = [
            ", ".join(f"{name} {value}" for name, value in row.items())
            for row in result.result["partial_unexpected_index_list"]
        ]
        broken.append(BrokenRule(rule, result.result["unexpected_count"], examples))
    return broken
