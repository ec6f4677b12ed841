"""A model serves only when it is, to the byte, the one that was promoted; kills leave the old one serving."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ml import registry
from ml.drift import reference
from ml.model import Algorithm, ChurnModel, SigmoidCalibrator, fit
from ml.registry import ChampionCorrupted, ChampionMissing, LibraryVersionWarning, ModelMetadata
from ml.training import library_versions

NAMES = ("usage", "logins")


def small_model(version: str, seed: int = 0) -> ChurnModel:
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(200, 2))
    churned = (values[:, 0] + generator.normal(size=200) > 0.5).astype(np.int64)
    estimator = fit(Algorithm.LOGISTIC_REGRESSION, values, churned, jobs=1)
    medians = np.median(values, axis=0)
    return ChurnModel(
        version, Algorithm.LOGISTIC_REGRESSION, NAMES, medians, estimator, SigmoidCalibrator(1.0, 0.0)
    )


def metadata_of(version: str, created_at: str = "2026-06-01T00:00:00+00:00") -> ModelMetadata:
    return ModelMetadata(
        version=version, algorithm="logistic_regression", features=NAMES, label="subscription_end",
        horizon_days=30, data_from="2026-01-01", data_until="2026-06-01", labels_known_until="2026-04-01",
        rows=200, customers=200, churned_customers=60, metrics={"auc": (0.75, 0.7, 0.8)},
        library_versions=library_versions(), created_at=created_at,
        drift_reference=reference(np.zeros((5, 2)), NAMES),
    )  # fmt: skip


def put(folder: Path, version: str, seed: int = 0) -> ModelMetadata:
    saved = registry.save(
        folder, small_model(version, seed), metadata_of(version), {"model_card.md": b"# Card"}
    )
    registry.promote(folder, version)
    return saved


def test_a_promoted_model_comes_back_as_it_was(tmp_path: Path) -> None:
    saved = put(tmp_path, "one")
    loaded = registry.load_champion(tmp_path)
    values = np.random.default_rng(1).normal(size=(50, 2))
    assert loaded.metadata == saved
    assert loaded.model.score(values).tobytes() == small_model("one").score(values).tobytes()
    assert (tmp_path / "versions" / "one" / "model_card.md").read_text() == "# Card"


def test_an_empty_folder_has_no_champion(tmp_path: Path) -> None:
    assert registry.champion_version(tmp_path / "absent") is None
    with pytest.raises(ChampionMissing, match="apex churn train"):
        registry.load_champion(tmp_path / "absent")


def test_saving_does_not_promote_and_promoting_swaps(tmp_path: Path) -> None:
    put(tmp_path, "one")
    registry.save(tmp_path, small_model("two", 1), metadata_of("two"))
    assert registry.champion_version(tmp_path) == "one"
    registry.promote(tmp_path, "two")
    assert registry.load_champion(tmp_path).model.version == "two"


def test_a_tampered_artifact_is_refused_before_a_byte_of_it_is_unpickled(tmp_path: Path) -> None:
    put(tmp_path, "one")
    proof = tmp_path / "executed"
    # A pickle that would create a file when loaded: os.system('touch ...').
    attack = b"cposix\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    (tmp_path / "versions" / "one" / "model.joblib").write_bytes(attack)
    with pytest.raises(ChampionCorrupted, match="SHA-256"):
        registry.load_champion(tmp_path)
    assert not proof.exists()


def test_one_flipped_bit_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "one")
    path = tmp_path / "versions" / "one" / "model.joblib"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ChampionCorrupted, match="Restore the file from a backup or train again"):
        registry.load_champion(tmp_path)


def test_metadata_changed_to_match_a_swapped_artifact_is_refused_too(tmp_path: Path) -> None:
    put(tmp_path, "one")
    put(tmp_path, "two", seed=1)
    home = tmp_path / "versions"
    for name in ("model.joblib", "metadata.json"):
        (home / "two" / name).write_bytes((home / "one" / name).read_bytes())
    with pytest.raises(ChampionCorrupted, match="changed after the model was promoted"):
        registry.load_champion(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"version": "one"}', "[]"])
def test_a_broken_pointer_is_a_typed_error(tmp_path: Path, content: str) -> None:
    put(tmp_path, "one")
    (tmp_path / "current.json").write_text(content)
    with pytest.raises(ChampionCorrupted, match="does not name a model"):
        registry.load_champion(tmp_path)


def test_a_missing_artifact_is_a_typed_error(tmp_path: Path) -> None:
    put(tmp_path, "one")
    (tmp_path / "versions" / "one" / "model.joblib").unlink()
    with pytest.raises(ChampionCorrupted, match="can't be read"):
        registry.load_champion(tmp_path)


def test_other_library_versions_are_warned_of_by_name(tmp_path: Path) -> None:
    older = replace(metadata_of("one"), library_versions={**library_versions(), "scikit-learn": "1.2.0"})
    registry.save(tmp_path, small_model("one"), older)
    with pytest.warns(LibraryVersionWarning, match=r"scikit-learn 1\.2\.0 \(here "):
        registry.load(tmp_path, "one")


def test_saving_again_over_a_corrupted_version_heals_it(tmp_path: Path) -> None:
    put(tmp_path, "one")
    (tmp_path / "versions" / "one" / "model.joblib").write_bytes(b"")
    put(tmp_path, "one")
    assert registry.load_champion(tmp_path).model.version == "one"


def test_saving_again_keeps_the_model_and_refreshes_what_people_read(tmp_path: Path) -> None:
    first = put(tmp_path, "one")
    card = {"model_card.md": b"# Newer card"}
    later = metadata_of("one", "2026-07-01T00:00:00+00:00")
    assert registry.save(tmp_path, small_model("one"), later, card) == first
    assert (tmp_path / "versions" / "one" / "model_card.md").read_bytes() == card["model_card.md"]
    assert registry.load_champion(tmp_path).metadata == first


def test_a_version_that_was_never_saved_is_not_promoted(tmp_path: Path) -> None:
    put(tmp_path, "one")
    with pytest.raises(ChampionMissing, match="no model 'two'"):
        registry.promote(tmp_path, "two")
    assert registry.champion_version(tmp_path) == "one"


def test_a_version_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(registry.RegistryError, match="plain file name"):
        registry.save(tmp_path, small_model("../one"), metadata_of("../one"))


def test_pruning_keeps_the_newest_and_the_champion(tmp_path: Path) -> None:
    put(tmp_path, "one")
    for day, version in ((2, "two"), (3, "three"), (4, "four")):
        created = f"2026-06-0{day}T00:00:00+00:00"
        registry.save(tmp_path, small_model(version), metadata_of(version, created))
    assert registry.prune(tmp_path, keep=1, besides="three") == ["two"]
    assert {path.name for path in (tmp_path / "versions").iterdir()} == {"one", "three", "four"}


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.ml.test_registry import put, registry
call, nth, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
real, seen = getattr(os, call), 0
def dying(*arguments, **named):
    global seen
    seen += 1
    if seen == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **named)
setattr(os, call, dying)
put(folder, "two", seed=1)
"""


@pytest.mark.parametrize(("call", "nth"), [("fsync", 2), ("replace", 1), ("replace", 2)])
def test_killed_half_way_the_old_champion_still_serves_and_the_next_save_succeeds(
    tmp_path: Path, call: str, nth: int
) -> None:
    put(tmp_path, "one")
    project = Path(__file__).resolve().parent.parent.parent
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, call, str(nth), str(tmp_path)], cwd=project, check=False
    )
    assert killed.returncode == -9, "the save was meant to be killed"
    assert registry.load_champion(tmp_path).model.version == "one"
    put(tmp_path, "two", seed=1)
    assert registry.load_champion(tmp_path).model.version == "two"
    leftovers = [path.name for path in (tmp_path / "versions").iterdir() if path.name.startswith(".building")]
    assert leftovers == []
    assert json.loads((tmp_path / "current.json").read_text())["version"] == "two"
