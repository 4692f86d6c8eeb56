"""Model versions: resolve a URI, read what is stored there, register a new one. Nothing in a version is loaded here."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient
from mlflow.types import TensorSpec
from mlflow.utils.validation import _validate_model_name
from pydantic import BaseModel, ConfigDict, ValidationError, computed_field, model_validator

from mlflow_unlearn.console import first_line, hidden_password
from mlflow_unlearn.data.manifest import Manifest, list_key
from mlflow_unlearn.errors import UnlearnError, shortlist
from mlflow_unlearn.evidence.checkpoints import CHECKPOINTS_TAG, Kept, Machine, Origin, Shards, trained_as
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.parsing import load_json, load_yaml
from mlflow_unlearn.registry.artifacts import download_model, run_file
from mlflow_unlearn.registry.clients import quoted
from mlflow_unlearn.registry.inputs import Inputs, kept_inputs
from mlflow_unlearn.registry.network import persistently

Format = Literal["pt2", "pickle"]
METADATA_KEY = "mlflow_unlearn"
MANIFEST_FILE = "training_manifest.csv"
MANIFEST_PATH = f"manifest/{MANIFEST_FILE}"
"""In the run that has recorded the list of a version that another tool made."""
WEIGHTS_FILE = "weights.safetensors"
PLACEMENT_FILE = "shards.csv"
"""Of an ensemble: the shard and the slice of each id of its training manifest."""

RETIRED_TAG = "unlearn.retired"
"""Of a version that `retire` has removed: time, user and reason."""
UNFINISHED = "unfinished"
"""In that tag, until all is gone: the aliases that are removed as well."""
DESCRIPTION_LIMIT = 5000
_NAME_LIMIT = 256
_NOT_IN_NAMES = "@?#'"
"""What MLflow's URIs and searches read as something else; it refuses / and : itself."""
REGISTERING_TAG = "unlearn.registering"
"""Of a version that is not complete yet: the run that is registering it, see `mlflow_unlearn.registry.registration`."""


class Commitment(BaseModel):
    """To canaries, before they were trained.

    Attributes:
        run_id: of the training, which keeps them.
        sha256: over a salt and the pairs.
        pairs: how many.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    sha256: str
    pairs: int


WEIGHTS_TAG = "unlearn.weights_sha256"
TRAINING_TAG = "unlearn.training_sha256"
"""Of a version and its LoggedModel: `Record.training_sha256`; who can change files alone cannot change it."""
TRAINED_ON_TAG = "unlearn.trained_on"
"""Of a version and its LoggedModel: `TrainedOn` as JSON, so that whoever searches need not download the list."""


class TrainedOn(BaseModel):
    """What a version was trained on and has not forgotten, in short.

    Attributes:
        samples: how many.
        source: spec of the data source, without what splits it.
        source_sha256: `Source.samples_digest`.
        manifest_sha256: of the list as it is stored.
        salt: of the hashed ids in it; None where they are plain, which the tag then leaves out.
        run_id: that holds the list, where the version's own files do not.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    samples: int
    source: str
    source_sha256: str
    manifest_sha256: str
    salt: str | None = None
    run_id: str | None = None

    @classmethod
    def of(cls, stored: Manifest, source: str, source_sha256: str, run_id: str | None = None) -> "TrainedOn":
        """Of a list and its source.

        Args:
            stored: as it is stored.
            source: spec, without what splits it.
            source_sha256: of its samples.
            run_id: that holds the list, where the version's own files do not.
        """
        return cls(
            samples=len(stored.ids),
            source=source,
            source_sha256=source_sha256,
            manifest_sha256=stored.digest,
            salt=stored.salt,
            run_id=run_id,
        )

    @property
    def list_key(self) -> str:
        """`Manifest.list_key` of the list."""
        return list_key(self.manifest_sha256, self.salt)

    def tag(self) -> dict[str, str]:
        """The tag."""
        return {TRAINED_ON_TAG: self.model_dump_json(exclude_none=True)}


def trained_on(tags: Mapping[str, str]) -> TrainedOn | None:
    """What the tags of a version or a LoggedModel say; None where they do not, or were edited."""
    try:
        return TrainedOn.model_validate(load_json(tags[TRAINED_ON_TAG]))
    except (KeyError, ValueError):
        return None


class Record(BaseModel):
    """What a version that we registered records of itself, in the MLmodel's metadata.

    Attributes:
        architecture: rebuilds the module together with ``num_classes`` and ``image_shape``; None for a module of the
            team's own, which travels as a pickle.
        num_classes: K.
        image_shape: ``(C, H, W)`` after the transform.
        transform: spec of the input transform.
        classes: names in the order of the outputs.
        data: spec of the data source.
        source_uri: the version that was unlearned, or None for a trained one.
        request_ids: what was fulfilled.
        provenance: how the weights came about.
        exclude: what a training left out: a request id or a forget spec.
        canaries: what the first training committed to; None without canaries.
        trained_on: its training manifest in short; None of an earlier release's.
        checkpoints: of its training, in artifacts of runs.
        shards: of an ensemble; None of one model.
        origin: the version that its training went on from.
        machine: what the bits of its weights depend on; recorded where the training can be gone back on.
    """

    # Versions written by a later release may record more.
    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    architecture: str | None
    num_classes: int
    image_shape: tuple[int, int, int]
    transform: str
    classes: tuple[str, ...]
    data: str
    source_uri: str | None = None
    request_ids: tuple[str, ...] = ()
    provenance: Provenance
    exclude: str | None = None
    canaries: Commitment | None = None
    trained_on: TrainedOn | None = None
    checkpoints: tuple[Kept, ...] = ()
    shards: Shards | None = None
    origin: Origin | None = None
    machine: Machine | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_releases(cls, values: Any) -> Any:
        """They wrote one untyped mapping, ``recipe``."""
        if not isinstance(values, dict) or "provenance" in values or not isinstance(values.get("recipe"), dict):
            return values
        recipe = values["recipe"]
        provenance = Provenance.from_recipe(str(values.get("method")), recipe)
        return values | {"provenance": provenance, "exclude": recipe.get("exclude")}

    def tags(self) -> dict[str, str]:
        """What the version's tags repeat of it, so that it can be searched for."""
        tags = self.trained_on.tag() if self.trained_on is not None else {}
        tags |= {CHECKPOINTS_TAG: str(len(self.checkpoints))} if self.checkpoints else {}
        return tags | ({TRAINING_TAG: self.training_sha256} if self.checkpoints or self.shards or self.origin else {})

    @property
    def training_sha256(self) -> str:
        """Of all that decides where the training is gone back to, and how it is run again.

        Without defaults, so that a field of a later release changes nothing of what is there.
        """
        what = {"architecture", "provenance", "exclude", "checkpoints", "shards", "origin", "machine", "trained_on"}
        told = self.model_dump(mode="json", include=what, exclude_defaults=True)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def trained_as(self) -> str | None:
        """`trained_as` of the training, which its run has as a tag where it keeps checkpoints; None if not recorded."""
        if self.trained_on is None:
            return None
        of = self.provenance if self.shards is None or self.shards.ended_by is not None else self.shards
        return trained_as(self.architecture, self.trained_on.manifest_sha256, of.params, of.seed)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def method(self) -> str:
        """Of `provenance`; written for earlier releases."""
        return self.provenance.method

    @computed_field  # type: ignore[prop-decorator]
    @property
    def recipe(self) -> dict[str, Any]:
        """Of `provenance`; written for earlier releases."""
        left_out = {"exclude": self.exclude} if self.provenance.method == "train" else {}
        return self.provenance.recipe() | left_out


@dataclass(frozen=True)
class Version:
    """A model of the registry, its files on disk.

    Attributes:
        uri: with the version resolved, never an alias.
        name: None for ``runs:/`` and ``models:/m-…``.
        version: likewise.
        model_id: of the LoggedModel, None where the version came from a plain path.
        path: the downloaded model folder.
        model: its MLmodel.
        record: ours, None for a version that another tool registered.
        tags: of the version.
        code: what loading it runs, in words; None before `loading.admitted` has looked, when it cannot be loaded.
        recorded: the list of training ids that `manifest` has recorded, of a version that has none itself.
        kept: of a version without a record, how it is read, as a request was told.
        unconfirmed: likewise what is code, and is not run before a user has named it on this machine.
        run_id: of the run that made it; None of one that is not registered.
    """

    uri: str
    name: str | None
    version: str | None
    model_id: str | None
    path: Path
    model: Model
    record: Record | None
    tags: Mapping[str, str]
    code: tuple[str, ...] | None = None
    recorded: Manifest | None = None
    kept: Inputs = Inputs()
    unconfirmed: Inputs = Inputs()
    run_id: str | None = None

    @property
    def reads(self) -> Inputs:
        """How it and its data are read, as far as it is known: as it records, or else as a request was told."""
        record = self.record
        if record is None:
            return self.kept
        return Inputs(
            data=record.data, architecture=record.architecture, transform=record.transform, classes=record.classes
        )

    @property
    def format(self) -> Format:
        """How the module is serialised: MLflow takes a pickle that lies beside a program."""
        return "pt2" if self.program.exists() and not self._data("model.pth").exists() else "pickle"

    @property
    def program(self) -> Path:
        """The archive of a version in pt2 format."""
        return self._data("model.pt2")

    @property
    def training_manifest(self) -> Manifest | None:
        """What the version was trained on and has not forgotten, None where that is not recorded."""
        path = below(self.path, f"extra_files/{MANIFEST_FILE}", self.uri)
        return Manifest.from_csv(path) if path.exists() else self.recorded

    @property
    def input_shape(self) -> tuple[int, int, int] | None:
        """``(C, H, W)`` of the signature, where it is a single tensor ``[N, C, H, W]`` of known size."""
        inputs = self.model.signature.inputs.inputs if self.model.signature is not None else []
        if len(inputs) == 1 and isinstance(inputs[0], TensorSpec) and len(inputs[0].shape) == 4:
            _, channels, height, width = inputs[0].shape
            return (channels, height, width) if min(channels, height, width) > 0 else None
        return None

    def _data(self, file: str) -> Path:
        return below(self.path, f"{self.model.flavors['pytorch']['model_data']}/{file}", self.uri)


def find_version(client: MlflowClient, uri: str) -> ModelVersion | None:
    """The registered version behind ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``; None for other models.

    Raises:
        UnlearnError: name, version or alias do not exist; the message lists those that do. Or the version is not
            complete: the command that is registering it has not ended, or was killed.
    """
    chosen = check_there(client, uri)
    if chosen is None:
        return None
    if (run_id := chosen.tags.get(REGISTERING_TAG)) is not None:
        raise UnlearnError(
            f"models:/{chosen.name}/{chosen.version} is not complete: the command of run {run_id} is still registering "
            "it, or was killed: wait, or start that command again on the same machine, which finishes it or takes it "
            "back; if that machine is gone, delete the version by hand, and file its requests again"
        )
    return chosen


def check_there(client: MlflowClient, uri: str) -> ModelVersion | None:
    """`find_version`, of a version that need not be complete.

    Raises:
        UnlearnError: name, version or alias do not exist.
    """
    if uri.startswith("runs:/") or re.fullmatch(r"models:/m-[0-9a-f]{32}", uri):
        return None
    return persistently(lambda: _find(client, uri))


def _find(client: MlflowClient, uri: str) -> ModelVersion:
    """The version, complete or not.

    Raises:
        UnlearnError: it does not exist.
    """
    match = re.fullmatch(r"models:/([^/@:]+)(?:/([^/@]+)|@([^/@]+))?", uri)
    if match is None:
        raise UnlearnError(
            f"{uri!r} is not a model URI: write models:/NAME/VERSION, models:/NAME@ALIAS, models:/m-ID or "
            "runs:/RUN/NAME"
        )
    name, version, alias = match.groups()
    try:
        if alias is not None and alias.lower() != "latest":  # which MLflow answers, and nobody can set
            return client.get_model_version_by_alias(name, alias)
        if version is not None and re.fullmatch("[1-9][0-9]*", version):
            return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    # Not there, or not by this name: what is there takes more requests.
    try:
        registered = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in client.search_registered_models(max_results=1000)]
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        there = ", ".join(sorted(names)[:10]) or "none"
        store = hidden_password(mlflow.get_registry_uri())
        raise UnlearnError(
            f"there is no registered model {name!r} in {store}: {hint}registered are: {there}"
        ) from error
    if alias is not None:
        if alias not in registered.aliases:
            there = ", ".join(f"{a} (version {v})" for a, v in sorted(registered.aliases.items())) or "none"
            raise UnlearnError(f"model {name!r} has no alias {alias!r}: its aliases are: {there}")
        # On SQLite it comes as an integer.
        version = str(registered.aliases[alias])
    found = {int(v.version): v for v in client.search_model_versions(f"name={quoted(name)}")}
    versions = sorted(found)
    complete = [number for number in versions if REGISTERING_TAG not in found[number].tags]
    if version == "latest" and versions:
        version = str((complete or versions)[-1])
    if version is None or version not in map(str, versions):
        there = ", ".join(map(str, versions[-20:])) or "none"
        asked = f"has no version {version!r}" if version is not None else "needs a version or an alias"
        raise UnlearnError(f"model {name!r} {asked}: its versions are: {there}")
    return client.get_model_version(name, version)


def registered_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version behind a URI that has to name a registered one.

    Raises:
        UnlearnError: it does not, or there is none.
    """
    registered = find_version(client, uri)
    if registered is None:
        raise UnlearnError(f"{uri} is not a registered version: give models:/NAME/VERSION or models:/NAME@ALIAS")
    return registered


def version_there(client: MlflowClient, uri: str) -> ModelVersion | None:
    """The version behind ``models:/NAME/VERSION``, complete or not; None where it is gone, and for other models."""
    match = re.fullmatch(r"models:/([^/@:]+)/([1-9][0-9]*)", uri)
    if match is None:
        return None
    try:
        return persistently(lambda: client.get_model_version(match[1], match[2]))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def retired(version: ModelVersion) -> str | None:
    """How a version was retired; None if it was not."""
    tag = version.tags.get(RETIRED_TAG)
    if tag is None:
        return None
    try:
        mark = load_json(tag)
        how = f"retired by {mark['by']} at {mark['at']}" + (f": {mark['reason']}" if mark["reason"] else "")
        return how if UNFINISHED not in mark else f"{how}, which is not finished: the same `retire` continues it"
    except (ValueError, TypeError, KeyError):
        return f"retired ({tag})"


def unfinished(version: ModelVersion) -> list[str] | None:
    """The aliases that go with a version whose retirement was begun and is not finished; None for all others."""
    try:
        aliases = load_json(version.tags[RETIRED_TAG])[UNFINISHED]
    except (KeyError, ValueError, TypeError):
        return None
    return [str(alias) for alias in aliases] if isinstance(aliases, list) else None


def below(folder: Path, name: object, uri: str) -> Path:
    """A path in a downloaded model, where a file of the model names it: it must not lead to this machine's own files.

    What such a path names is loaded, or copied into the next version, where others may read it.

    Args:
        folder: the downloaded model.
        name: relative to it.
        uri: the model's, for the error.

    Raises:
        UnlearnError: it leads out of the folder, is the folder itself, or goes through a symbolic link.
    """
    root = folder.resolve()
    path = root / str(name)
    try:
        inside = root in path.resolve().parents and path.resolve() == Path(os.path.normpath(path))
    except (OSError, RuntimeError, ValueError):  # links in a circle; a name that no file can have
        inside = False
    if not inside:
        raise UnlearnError(
            f"{uri} names the path {str(name)!r}, which leads out of its own folder or through a link: correct its "
            "MLmodel, or choose another version"
        )
    return path


def download(uri: str, folder: Path) -> Path:
    """The files of a model in a folder of their own below ``folder``, nothing of them loaded.

    Raises:
        UnlearnError: a store's plugin gives links, by which copies of the model would take in other files.
        NoAnswer: whether they are there is not known.
    """
    target = _target(uri, folder)
    target.mkdir(exist_ok=True)
    path = persistently(lambda: download_model(uri, target))
    if links := [str(found.relative_to(path)) for found in path.rglob("*") if found.is_symlink()]:
        raise UnlearnError(f"the files of {uri} hold symbolic links ({shortlist(links)}): store the files themselves")
    return path


def downloaded(uri: str, folder: Path) -> Path | None:
    """Where `download` has left the files of a model in this ``folder``; None where it has not, or there were none."""
    target = _target(uri, folder)
    return target if (target / "MLmodel").exists() else None


def _target(uri: str, folder: Path) -> Path:
    return folder / hashlib.sha256(uri.encode()).hexdigest()[:16]  # a name may be too long for a folder


@contextmanager
def fetched(uri: str) -> Iterator[Path]:
    """One stored file inside the block; what MLflow downloads by itself stays in the temporary folder."""
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        yield Path(persistently(lambda: mlflow.artifacts.download_artifacts(uri, dst_path=folder)))


@contextmanager
def artifact(run_id: str, path: str) -> Iterator[Path]:
    """One of a run's files inside the block: without looking for a model of that name, as ``runs:/`` does."""
    with tempfile.TemporaryDirectory(prefix="mlflow-unlearn-") as folder:
        yield run_file(run_id, path, Path(folder))


def read_artifact(run_id: str, path: str) -> bytes:
    """The bytes of one of a run's files."""
    with artifact(run_id, path) as file:
        return file.read_bytes()


def can_be_read(uri: str) -> bool:
    """Whether a model's files are there."""
    try:
        with fetched(f"{uri}/MLmodel"):
            return True
    except (MlflowException, OSError):
        return False


def read_mlmodel(path: Path) -> Model:
    """A file MLmodel, which anybody may have written.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is none.
    """
    content = load_yaml(path.read_bytes())
    try:
        return Model.from_dict(content)
    except (AttributeError, KeyError, TypeError, MlflowException) as error:
        raise ValueError(f"{path.name} is not one that MLflow wrote ({first_line(error)})") from error


def open_version(client: MlflowClient, uri: str, folder: Path) -> Version:
    """Resolve ``uri`` and download its files into ``folder``.

    Raises:
        UnlearnError: it does not exist, was retired, its artifacts are gone, it is not a PyTorch model, or it names
            files that are not its own.
    """
    registered = find_version(client, uri)
    if registered is not None:
        uri = f"models:/{registered.name}/{registered.version}"
        if (retirement := retired(registered)) is not None:
            raise UnlearnError(f"the files of {uri} are gone, it was {retirement}; choose another version")
    try:
        path = download(uri, folder)
        model = read_mlmodel(path / "MLmodel")
    except (MlflowException, OSError, ValueError) as error:
        raise UnlearnError(
            f"the files of {uri} cannot be read ({first_line(error)}): "
            "its artifacts were deleted or moved, or the URI is wrong; restore them or choose another version"
        ) from error
    if "pytorch" not in model.flavors:
        there = ", ".join(sorted(model.flavors))
        raise UnlearnError(
            f"{uri} is not a PyTorch model (its flavors are: {there}): only the pytorch flavor can be unlearned"
        )
    try:
        named = [*_named_paths(model)]
    except (AttributeError, KeyError, TypeError) as error:
        raise UnlearnError(f"the MLmodel of {uri} cannot be read ({error!r}): choose another version") from error
    for name in named:
        below(path, name, uri)  # before MLflow's own code follows it
    metadata = (model.metadata or {}).get(METADATA_KEY)
    try:
        record = Record.model_validate(metadata) if metadata is not None else None
    except ValidationError as error:
        first = error.errors()[0]
        raise UnlearnError(
            f"the record of {uri} cannot be read ({'.'.join(map(str, first['loc']))}: {first['msg']}): it was written "
            "by a newer release or edited; use that release or another version"
        ) from error
    if registered is None:
        return Version(uri, None, None, model.model_id, path, model, record, {})
    kept, unconfirmed = (Inputs(), Inputs()) if record is not None else kept_inputs(uri, registered.tags)
    return Version(
        uri,
        registered.name,
        str(registered.version),
        model.model_id,
        path,
        model,
        record,
        dict(registered.tags),
        recorded=recorded_manifest(registered),
        kept=kept,
        unconfirmed=unconfirmed,
        run_id=registered.run_id or None,
    )


def recorded_manifest(version: ModelVersion) -> Manifest | None:
    """The list of training ids that `manifest` has recorded of a version; None where it has not.

    Raises:
        UnlearnError: it is gone, or was changed.
    """
    found = trained_on(version.tags)
    if found is None or found.run_id is None:
        return None
    uri = f"models:/{version.name}/{version.version}"
    try:
        with artifact(found.run_id, MANIFEST_PATH) as path:
            manifest = Manifest.from_csv(path)
    except (MlflowException, OSError) as error:
        raise UnlearnError(
            f"the list of what {uri} was trained on, in run {found.run_id}, cannot be read ({first_line(error)}): "
            "record it again with `manifest`"
        ) from error
    if manifest.digest != found.manifest_sha256:
        raise UnlearnError(
            f"the list of what {uri} was trained on, in run {found.run_id}, was changed: record it by `manifest` again"
        )
    return manifest


def _named_paths(model: Model) -> Iterator[object]:
    """The paths in the MLmodel that loading and logging a PyTorch model follows."""
    flavor = model.flavors["pytorch"]
    yield from (flavor[key] for key in ("model_data", "code") if flavor.get(key))
    yield from (entry["path"] for entry in flavor.get("extra_files") or ())
    example = model.saved_input_example_info or {}
    yield from (example[key] for key in ("artifact_path", "serving_input_path") if example.get(key))


def check_name(name: str) -> str:
    """A name that the registry takes, and by which ``models:/NAME/VERSION`` finds the model again.

    Raises:
        UnlearnError: it is not one.
    """
    try:
        _validate_model_name(name)
        bad = sorted({c for c in name if c in _NOT_IN_NAMES or not c.isprintable()})
        reason = (
            f"models:/NAME/VERSION does not find one with {' '.join(map(repr, bad))}: leave it out" if bad else None
        )
        if len(name) > _NAME_LIMIT:
            reason = f"it has {len(name)} characters, and databases take {_NAME_LIMIT}: shorten it"
    except MlflowException as error:
        reason = error.message
    if reason is not None:
        raise UnlearnError(f"{name[:60]!r} is not a name for a registered model: {reason}")
    return name
