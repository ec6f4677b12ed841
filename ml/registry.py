"""The folder in which models are kept, and the pointer that says which one serves.

Belongs here: saving, promoting, loading, proving that a file is what was saved.
Does not belong here: deciding which model is to serve (`ml.gate`).

    versions/<version>/model.joblib, metadata.json, and attachments (model card, plots)
    current.json                  names the champion and the SHA-256 of its metadata

Both steps are atomic: a version appears by one rename of a finished, synced folder, and the pointer is
replaced by one rename of a synced file. A kill in between leaves the old champion serving.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import pickle
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import joblib

from ml.drift import FeatureReference
from ml.model import ChurnModel
from ml.training import library_versions

ARTIFACT = "model.joblib"
METADATA = "metadata.json"
POINTER = "current.json"
VERSIONS = "versions"


class RegistryError(RuntimeError):
    """Something is wrong with the model folder; the message names the file and what to do."""


class ChampionMissing(RegistryError):
    """No model was ever promoted in this folder."""


class ChampionCorrupted(RegistryError):
    """A file is not what was saved, or can't be read. It was not loaded."""


class LibraryVersionWarning(UserWarning):
    """The model was trained with other library versions than those that load it."""


@dataclass(frozen=True)
class ModelMetadata:
    """What is known of a stored model without loading it.

    Attributes
    ----------
    metrics : name → (value, low, high) on the test rows, 95 % interval.
    labels_known_until : ISO date; rows with a feature date from here on are news to the model.
    created_at : ISO instant, UTC.
    artifact_sha256 : of `model.joblib`; filled in by `save`.
    """

    version: str
    algorithm: str
    features: tuple[str, ...]
    label: str
    horizon_days: int
    data_from: str
    data_until: str
    labels_known_until: str
    rows: int
    customers: int
    churned_customers: int
    metrics: dict[str, tuple[float, float, float]]
    library_versions: dict[str, str]
    drift_reference: tuple[FeatureReference, ...]
    created_at: str
    notes: tuple[str, ...] = ()
    artifact_sha256: str = field(default="")


@dataclass(frozen=True)
class StoredModel:
    """A model whose artifact proved to be the one that was saved, with its metadata."""

    model: ChurnModel
    metadata: ModelMetadata


def save(
    folder: Path, model: ChurnModel, metadata: ModelMetadata, attachments: Mapping[str, bytes] | None = None
) -> ModelMetadata:
    """Store a version without letting it serve.

    A sound version that is there already keeps its artifact and metadata; only attachments are refreshed.

    Parameters
    ----------
    attachments : file name → content; kept beside the artifact for people to read, and never loaded.

    Raises
    ------
    RegistryError
        If the version is no plain name, or the folder can't be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model.version):
        raise RegistryError(f"a model version must be a plain file name, received {model.version!r}")
    try:
        (folder / VERSIONS).mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            _sweep(folder)
            stored = _stored(folder, model.version)
            if stored is None:
                return _build(folder, model, metadata, attachments or {})
            for name, attached in (attachments or {}).items():
                _replace(folder / VERSIONS / model.version / name, attached)
            return stored
    except OSError as error:
        raise RegistryError(f"could not store model {model.version} in {folder}: {error}") from error


def promote(folder: Path, version: str) -> None:
    """Let a stored version serve, by swapping the pointer.

    Raises
    ------
    ChampionMissing
        If the version is not stored.
    ChampionCorrupted
        If its files are not what was saved.
    """
    if not (folder / VERSIONS / version).exists():
        raise ChampionMissing(f"there is no model {version!r} in {folder / VERSIONS}")
    with _locked(folder):
        load(folder, version)
        digest = hashlib.sha256(_read(folder / VERSIONS / version / METADATA)).hexdigest()
        _replace(folder / POINTER, json.dumps({"version": version, "metadata_sha256": digest}).encode())


def champion_version(folder: Path) -> str | None:
    """Version that serves, None when none was ever promoted.

    Raises
    ------
    ChampionCorrupted
        If the pointer can't be read.
    """
    pointer = _pointer(folder)
    return None if pointer is None else pointer["version"]


def load_champion(folder: Path) -> StoredModel:
    """The model that serves; every byte is verified before anything is unpickled.

    Raises
    ------
    ChampionMissing
        If no model was ever promoted.
    ChampionCorrupted
        If pointer, metadata or artifact is not what was saved.

    Warns
    -----
    LibraryVersionWarning
        If the model was trained with other library versions.
    """
    pointer = _pointer(folder)
    if pointer is None:
        raise ChampionMissing(f"no model serves in {folder}; `apex churn train` trains one")
    return load(folder, pointer["version"], metadata_sha256=pointer["metadata_sha256"])


def load(folder: Path, version: str, *, metadata_sha256: str | None = None) -> StoredModel:
    """A stored version, verified; see `load_champion` for what is raised and warned."""
    home = folder / VERSIONS / version
    raw = _read(home / METADATA)
    if metadata_sha256 is not None and hashlib.sha256(raw).hexdigest() != metadata_sha256:
        raise ChampionCorrupted(f"{home / METADATA} was changed after the model was promoted; not loaded")
    metadata = _decode(raw, home / METADATA)
    content = _read(home / ARTIFACT)
    digest = hashlib.sha256(content).hexdigest()
    if digest != metadata.artifact_sha256:
        raise ChampionCorrupted(
            f"{home / ARTIFACT} has SHA-256 {digest}, its metadata says {metadata.artifact_sha256}; "
            "not loaded. Restore the file from a backup or train again"
        )
    _warn_of_versions(metadata)
    try:
        # The very bytes that were verified, not the file again: it might have been swapped in between.
        model = joblib.load(io.BytesIO(content))
    except (pickle.UnpicklingError, AttributeError, ImportError, ValueError, TypeError, KeyError) as error:
        raise ChampionCorrupted(
            f"{home / ARTIFACT} is intact but can't be unpickled by the libraries installed here "
            f"({library_versions()}; trained with {metadata.library_versions}): {error}"
        ) from error
    if not isinstance(model, ChurnModel):
        raise ChampionCorrupted(f"{home / ARTIFACT} holds a {type(model).__name__}, not a churn model")
    return StoredModel(model, metadata)


def prune(folder: Path, *, keep: int, besides: str) -> list[str]:
    """Remove all but the `keep` newest versions; the champion and `besides` always stay.

    Returns
    -------
    list of str
        What was removed. Nothing when the pointer can't be read: any version might be the one that serves.
    """
    try:
        staying = {champion_version(folder), besides}
    except ChampionCorrupted:
        return []
    stored = [path for path in (folder / VERSIONS).glob("[!.]*") if path.name not in staying]
    stored.sort(key=lambda path: (_created_at(path), path.name), reverse=True)
    removed = stored[keep:]
    for path in removed:
        shutil.rmtree(path)
    return [path.name for path in removed]


def _stored(folder: Path, version: str) -> ModelMetadata | None:
    """Metadata of a sound stored version, None when there is none or it is to be replaced."""
    if not (folder / VERSIONS / version).exists():
        return None
    try:
        return load(folder, version).metadata
    except ChampionCorrupted:
        return None


def _build(
    folder: Path, model: ChurnModel, metadata: ModelMetadata, attachments: Mapping[str, bytes]
) -> ModelMetadata:
    target = folder / VERSIONS / model.version
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=3)
    content = buffer.getvalue()
    complete = replace(metadata, artifact_sha256=hashlib.sha256(content).hexdigest())
    building = folder / VERSIONS / f".building-{secrets.token_hex(4)}"
    building.mkdir()
    _write(building / ARTIFACT, content)
    _write(building / METADATA, _encode(complete))
    for name, attached in attachments.items():
        _write(building / name, attached)
    _sync_folder(building)
    if target.exists():
        os.replace(target, folder / VERSIONS / f".corrupted-{secrets.token_hex(4)}")
    os.replace(building, target)
    _sync_folder(target.parent)
    return complete


def _created_at(path: Path) -> str:
    try:
        return _decode(_read(path / METADATA), path / METADATA).created_at
    except ChampionCorrupted:
        return ""


def _pointer(folder: Path) -> dict[str, str] | None:
    path = folder / POINTER
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        return {"version": str(content["version"]), "metadata_sha256": str(content["metadata_sha256"])}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, OSError) as error:
        raise ChampionCorrupted(f"{path} does not name a model: {error!r}") from error


def _encode(metadata: ModelMetadata) -> bytes:
    return json.dumps(asdict(metadata), indent=2, sort_keys=True).encode()


def _decode(raw: bytes, path: Path) -> ModelMetadata:
    try:
        content: dict[str, Any] = json.loads(raw)
        content["features"] = tuple(content["features"])
        content["notes"] = tuple(content["notes"])
        content["metrics"] = {
            name: (value, low, high) for name, (value, low, high) in content["metrics"].items()
        }
        content["drift_reference"] = tuple(
            FeatureReference(item["feature"], tuple(item["borders"]), tuple(item["shares"]))
            for item in content["drift_reference"]
        )
        datetime.fromisoformat(content["created_at"])
        return ModelMetadata(**content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ChampionCorrupted(f"{path} is no model metadata: {error!r}") from error


def _warn_of_versions(metadata: ModelMetadata) -> None:
    here = library_versions()
    differing = [
        f"{name} {version} (here {here.get(name, 'absent')})"
        for name, version in metadata.library_versions.items()
        if here.get(name) != version
    ]
    if differing:
        warnings.warn(
            f"model {metadata.version} was trained with {', '.join(differing)}; train again to be sure of it",
            LibraryVersionWarning,
            stacklevel=4,
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ChampionCorrupted(f"{path} can't be read: {error}") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _replace(path: Path, content: bytes) -> None:
    """Swap a file for another content, so that a reader sees the whole of the old or of the new one."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    _write(temporary, content)
    os.replace(temporary, path)
    _sync_folder(path.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; the kernel lets go of the lock when its holder is killed."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what killed saves and healed corruptions left behind."""
    versions = folder / VERSIONS
    for leftover in [*versions.glob(".*-*"), *versions.glob("*/.*-*"), *folder.glob(f".{POINTER}-*")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
