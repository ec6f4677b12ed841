"""On real buyers: features from the file alone, scores held against who really came back."""

from __future__ import annotations

import time
from datetime import date, timedelta

import polars as pl
import pytest

from ml.training import TrainingResult, TrainingSettings, train
from tests.ml import cdnow

pytestmark = pytest.mark.skipif(
    not cdnow.FILE.exists(), reason=f"{cdnow.FILE} is not there (it is not part of the project)"
)


@pytest.fixture(scope="module")
def bought() -> pl.DataFrame:
    return cdnow.purchases()


def test_the_file_is_read_whole(bought: pl.DataFrame) -> None:
    assert bought.height == 69_659
    assert bought["customer_id"].n_unique() == 23_570


def test_nothing_after_the_feature_date_changes_a_feature(bought: pl.DataFrame) -> None:
    day = date(1997, 11, 1)
    honest = cdnow.features_at(bought, day).sort("customer_id")
    later = bought.filter(pl.col("day") >= day).with_columns(
        day=pl.col("day") + timedelta(days=1), cds=pl.lit(999.0)
    )
    planted = cdnow.features_at(pl.concat([bought, later]), day).sort("customer_id")
    assert honest.equals(planted)
    assert not honest.equals(cdnow.features_at(bought, day + timedelta(days=7)).sort("customer_id"))


def test_who_drops_out_is_foreseen_as_well_as_is_honest_on_later_dates(bought: pl.DataFrame) -> None:
    frame = cdnow.labelled_frame(bought)
    assert frame.height > 300_000
    began = time.perf_counter()
    found = train(frame, TrainingSettings(horizon_days=cdnow.HORIZON))
    seconds = time.perf_counter() - began
    assert isinstance(found, TrainingResult)
    assert seconds < 90
    assert found.evaluation.auc.low > 0.65
    assert found.evaluation.auc.high < 0.85
    assert found.evaluation.ece.value < 0.05
    assert found.evaluation.brier_skill.low > 0.1
    assert found.split.test_start + timedelta(days=cdnow.HORIZON) <= cdnow.AS_OF
    assert any("drawn at random" in note for note in found.notes), "sampling must be said"
