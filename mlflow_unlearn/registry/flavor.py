"""The PyTorch flavor: the module behind a version, and a new version that drops in for its source."""

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.models import infer_signature
from mlflow.models.model import ModelInfo
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from mlflow_unlearn.console import first_line
from mlflow_unlearn.data.functions import users_code
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.data.placement import Placement, write_placement
from mlflow_unlearn.engine.architectures import build_model, check_parameters, load_weights, non_finite_tensor
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.parsing import load_json, load_yaml
from mlflow_unlearn.registry.dead import PROCESS_TAG, of_run
from mlflow_unlearn.registry.network import once, persistently
from mlflow_unlearn.registry.versions import (
    MANIFEST_FILE,
    METADATA_KEY,
    PLACEMENT_FILE,
    WEIGHTS_FILE,
    Format,
    Record,
    Version,
    below,
)
from mlflow_unlearn.spelling import spelled


def load_module(version: Version, architecture: str | None, num_classes: int, *, trainable: bool = True) -> nn.Module:
    """The version's module in eval mode on the CPU, finite weights assured.

    A pt2 program has its modes baked in: to be trained again it is rebuilt from its architecture.

    Args:
        version: from `loading.admitted`.
        architecture: overrides what is known.
        num_classes: K, to rebuild a version without a record.
        trainable: False takes a pt2 program without an architecture as it is, for evaluation alone.

    Raises:
        UnlearnError: it cannot be loaded or rebuilt, or holds NaN.
        ValueError: it was not asked what loading runs.
    """
    if version.code is None:
        raise ValueError("only an admitted version is loaded")
    try:
        with users_code(f"loading {version.uri}"):
            module = mlflow.pytorch.load_model(str(version.path), device="cpu")
    except UnlearnError:
        raise
    except Exception as error:  # Unpickling runs the team's code.
        reason = first_line(error)
        raise UnlearnError(
            f"{version.uri} cannot be loaded ({type(error).__name__}: {reason}): "
            "its requirements.txt lists what it needs; a class of your own is found by PYTHONPATH or code_paths"
        ) from error
    if isinstance(module, torch.jit.ScriptModule):
        raise UnlearnError(f"{version.uri} is TorchScript, which is not trained again: log the eager module or pt2")
    if not isinstance(module, nn.Module):
        raise UnlearnError(f"{version.uri} holds a {type(module).__name__}, not a torch.nn.Module")
    check_parameters(module, version.uri)
    if (bad := non_finite_tensor(module)) is not None:
        raise UnlearnError(
            f"the weights of {version.uri} are not finite ({bad} holds NaN or infinity): choose another version"
        )
    if version.format == "pickle":
        return module.eval()
    record = version.record
    named = architecture or version.reads.architecture
    if named is None:
        if not trainable:
            return module
        raise UnlearnError(
            f"{version.uri} is an exported program (pt2), which is rebuilt to be trained again: name its architecture "
            f"with {spelled('architecture')} package.module:factory, timm:NAME or torchvision:NAME"
        )
    shape = record.image_shape if record is not None else version.input_shape
    if shape is None:
        raise UnlearnError(f"{version.uri} has no signature [N, C, H, W] from which to rebuild {named!r}")
    return _rebuilt(version, module, named, num_classes, shape)


def _rebuilt(
    version: Version, program: nn.Module, architecture: str, num_classes: int, shape: tuple[int, int, int]
) -> nn.Module:
    """The architecture with the program's weights, if it computes what the program computes.

    A version of another tool's may be the ordinary architecture or its variant for small images: both are tried.

    Args:
        version: whose program it is.
        program: gives the weights and the expected outputs.
        architecture: to build.
        num_classes: K.
        shape: ``(C, H, W)`` of an image.

    Raises:
        UnlearnError: the weights do not fit, or the outputs differ.
    """
    state = {name: value.detach().clone() for name, value in program.state_dict().items()}
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    variants = [None] if version.record is not None else [False, True]
    mismatch: UnlearnError | None = None
    for small in variants:
        try:
            module = build_model(architecture, num_classes, shape, small=small).eval()
            load_weights(module, state, architecture)
        except UnlearnError as error:
            mismatch = mismatch or error
            continue
        expected, found = _output(program, images, version.uri), _output(module, images, architecture)
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
            return module
        mismatch = UnlearnError(
            f"{architecture!r} takes the weights of {version.uri} and computes something else with them: "
            "give the very architecture that was exported"
        )
    raise mismatch or ValueError("there is always a variant to try")


def _output(module: nn.Module, images: Tensor, name: str) -> Tensor:
    """The module's outputs, one image at a time where it takes no other batch.

    Raises:
        UnlearnError: it cannot read them, or returns no tensor.
    """
    try:
        with torch.inference_mode():
            try:
                output = module(images)
            except (AssertionError, RuntimeError):
                # A program that was exported with one image has that batch size for good.
                output = torch.cat([module(image[None]) for image in images])
    except Exception as error:  # Whatever a forward pass raises on an input that does not fit.
        reason = first_line(error)
        raise UnlearnError(
            f"{name!r} cannot read images {list(images.shape[1:])} ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(output, Tensor):
        raise UnlearnError(f"{name!r} returns a {type(output).__name__}, not a tensor of logits [N, K]")
    return output


@dataclass(frozen=True)
class NewModel:
    """A module that is to be stored, and what is stored beside it.

    With a ``source`` its format, signature, input example, code, extra files, environment and other metadata stay,
    so that users of the source can use the new version.

    Attributes:
        module: moved to the CPU and put in eval mode when it is stored.
        record: for the MLmodel's metadata.
        training: effective training manifest of the new version, its ids hashed.
        folder: for temporary files.
        example: input example ``[N, C, H, W]`` where there is no source, or in place of the source's.
        source: the version that the new one replaces.
        serialization: where there is no source.
        placed: of an ensemble: plain ids ``[N]``, and where they lie ``[N]``.
    """

    module: nn.Module
    record: Record
    training: Manifest
    folder: Path
    example: np.ndarray[Any, Any] | None = None
    source: Version | None = None
    serialization: Format = "pt2"
    placed: tuple[Sequence[str], Placement] | None = None


@users_code("the model")
def log_model(client: MlflowClient, new: NewModel, run_id: str) -> ModelInfo:
    """Log it in the active run, whose id is given."""
    stored = _stored_beside(new)
    run = persistently(lambda: client.get_run(run_id))
    own = of_run(run_id)
    mark = {} if own is None else {PROCESS_TAG: own.name}  # by which a command that fails knows its own ones
    tags = mark | new.record.tags()

    def created() -> LoggedModel | None:
        found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
        return next((model for model in found if mark and mark.items() <= model.tags.items()), None)

    logged = once(
        lambda: mlflow.initialize_logged_model("model", source_run_id=run_id, params=run.data.params, tags=tags),
        created,
    )
    return mlflow.pytorch.log_model(new.module.cpu().eval(), name="model", model_id=logged.model_id, **stored)


@users_code("the model")
def save_model(new: NewModel, path: Path) -> None:
    """Write what `log_model` would log to the folder ``path``, which must not exist."""
    mlflow.pytorch.save_model(new.module.cpu().eval(), path, **_stored_beside(new))


def _stored_beside(new: NewModel) -> dict[str, Any]:
    """MLflow's arguments for all but the module, which is on the CPU and in eval mode by now.

    Raises:
        OSError: the disk is full, or the weights cannot be written.
    """
    module, source, folder = new.module, new.source, new.folder
    # Always hashed: comparing two versions' manifests must not name what was forgotten.
    new.training.to_csv(folder / MANIFEST_FILE)
    weights = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
    try:
        save_file(weights, folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    # MLflow writes the same twice more in the same place, and torch ends the process when the disk is full.
    if shutil.disk_usage(folder).free < 2 * (folder / WEIGHTS_FILE).stat().st_size:
        raise OSError(f"No space left for the model in {tempfile.gettempdir()!r}")
    extra = [folder / MANIFEST_FILE, folder / WEIGHTS_FILE]
    if new.placed is not None:
        write_placement(folder / PLACEMENT_FILE, new.training, new.placed[1], new.placed[0])
        extra.append(folder / PLACEMENT_FILE)
    metadata: dict[str, Any] = {METADATA_KEY: new.record.model_dump(mode="json")}
    arguments: dict[str, Any]
    if source is not None:
        names = {file.name for file in extra} | {PLACEMENT_FILE}  # a source's lists what is forgotten now
        theirs = sorted(path.name for path in (source.path / "extra_files").glob("*"))
        extra += [below(source.path, f"extra_files/{name}", source.uri) for name in theirs if name not in names]
        metadata = {**(source.model.metadata or {}), **metadata}
        arguments = _like(source, folder)
        if new.example is not None:
            arguments["input_example"] = new.example
    else:
        if new.example is None:
            raise ValueError("a version without a source needs an input example")
        with torch.inference_mode():
            output = module(torch.from_numpy(new.example)).numpy()
        arguments = {
            "signature": infer_signature(new.example, output),
            "input_example": new.example,
            "pip_requirements": _requirements(module, new.serialization),
            "serialization_format": new.serialization,
        }
    return {"extra_files": [str(file) for file in extra], "metadata": metadata, **arguments}


def _like(source: Version, folder: Path) -> dict[str, Any]:
    """Arguments of ``log_model`` that make the new model what the source is to its users; ``folder`` is temporary."""
    code = source.model.flavors["pytorch"].get("code")
    arguments: dict[str, Any] = {
        "signature": source.model.signature,
        "serialization_format": source.format,
        "code_paths": [str(path) for path in sorted(below(source.path, code, source.uri).iterdir())] if code else None,
    }
    if (example := _example(source)) is not None:
        arguments["input_example"] = example
    elif source.format == "pt2" and source.input_shape is not None:
        # Tracing needs an example; two samples keep the batch size dynamic.
        arguments["input_example"] = np.zeros((2, *source.input_shape), dtype=np.float32)
    if (source.path / "conda.yaml").exists():
        arguments["conda_env"] = _environment(source, folder)
    elif (source.path / "requirements.txt").exists():
        lines = below(source.path, "requirements.txt", source.uri).read_text(errors="replace").splitlines()
        arguments["pip_requirements"] = _own_requirements(source, lines, folder)
    return arguments


def _example(version: Version) -> Any:
    """The input example of a version; None without one.

    Raises:
        UnlearnError: it cannot be read, or names a file.
    """
    info = version.model.saved_input_example_info
    if info is None:
        return None
    try:
        content = load_json(below(version.path, info["artifact_path"], version.uri).read_text())
        data = content["inputs"] if info.get("params") else content
    except (KeyError, TypeError, ValueError) as error:
        raise UnlearnError(
            f"the input example of {version.uri} cannot be read ({error!r}): choose another version"
        ) from error
    if isinstance(data, str):  # MLflow would take it for a path, and read that file
        raise UnlearnError(f"the input example of {version.uri} is the text {data!r}: choose another version")
    return version.model.load_input_example(str(version.path))


def _environment(source: Version, folder: Path) -> dict[str, Any]:
    """The source's conda environment.

    Raises:
        UnlearnError: it is not one, or names files that are not the model's own.
    """
    try:
        content = load_yaml(below(source.path, "conda.yaml", source.uri).read_bytes())
        # MLflow would take a text in the place of either for a path, and read that file.
        found: dict[str, Any] = {**content}
        parts = [part if isinstance(part, str) else {**part} for part in found["dependencies"]]
        for part in parts:
            if isinstance(part, dict) and not isinstance(part["pip"], list):
                raise TypeError("pip is not a list")
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        raise UnlearnError(
            f"conda.yaml of {source.uri} is not an environment ({reason}): correct it, or choose another version"
        ) from error
    for part in parts:
        if isinstance(part, dict):
            part["pip"] = _own_requirements(source, part["pip"], folder)
    return {**found, "dependencies": parts}


_FILE = re.compile(r"(-r|--requirement\b|-c|--constraint\b)[\s=]*")


def _own_requirements(source: Version, lines: Sequence[object], folder: Path) -> list[str]:
    """Lines of pip requirements in which no file is named but one of ours, in ``folder``, with the constraints.

    MLflow would read what they name, into the new version: so the files are read here, and their lines stand in place.

    Raises:
        UnlearnError: a file is not the model's own, or names further ones.
    """
    found: list[str] = []
    constraints: list[str] = []
    for line in _pip_lines(lines, source.uri):
        if (option := _FILE.match(line)) is None:
            found.append(line)
            continue
        name = line[option.end() :]
        inner = _pip_lines([below(source.path, name, source.uri).read_text(errors="replace")], source.uri)
        if any(part.startswith("-") for part in inner):
            raise UnlearnError(
                f"{name} of {source.uri}, which its requirements name, may not name further files: "
                "write them in one file"
            )
        (constraints if option[1] in ("-c", "--constraint") else found).extend(inner)
    if constraints:
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".txt", delete=False) as file:
            file.write("\n".join(constraints))
        found.append(f"-c {file.name}")
    return found


def _pip_lines(texts: Sequence[object], uri: str) -> list[str]:
    """As MLflow reads them: split by all that ends a line, without comments, and with continued lines in one.

    Raises:
        UnlearnError: one would be continued if it were read again.
    """
    lines = [line.strip().partition(" #")[0].rstrip() for text in texts for line in str(text).splitlines()]
    joined = re.sub(r"\\+\n", "", "\n".join([*lines, ""])).split("\n")
    found = [line for line in (line.partition(" #")[0].strip() for line in joined) if line and not line.startswith("#")]
    for line in found:
        if line.endswith("\\"):
            raise UnlearnError(f"the requirements of {uri} have a line that ends in a backslash: {line!r}")
    return found


def _requirements(module: nn.Module, serialization: Format) -> list[str]:
    """What loading the model needs, as ``package==version``; never this package."""
    import mlflow as mlflow_package
    import timm
    import torchvision

    needed = [("mlflow", mlflow_package.__version__), ("numpy", np.__version__), ("torch", torch.__version__)]
    if serialization == "pickle":
        # A pickle refers to its classes by module.
        roots = {type(part).__module__.split(".")[0] for part in module.modules()}
        needed += [(p.__name__, p.__version__) for p in (timm, torchvision) if p.__name__ in roots]
    # A local build label ("+cpu") names no release of the package index.
    return [f"{package}=={version.split('+')[0]}" for package, version in needed]


def input_example(version: Version) -> np.ndarray[Any, Any] | None:
    """The input example that the version was logged with, where it is an array ``[N, C, H, W]``."""
    example = _example(version)
    return example if isinstance(example, np.ndarray) and example.ndim == 4 else None


def example_images(images: Sequence[Tensor]) -> np.ndarray[Any, Any]:
    """The first two images as an input example ``[2, C, H, W]``: two, so that export keeps the batch size dynamic."""
    return torch.stack(list(images[:2])).numpy()
