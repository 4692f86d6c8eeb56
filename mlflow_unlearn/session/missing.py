"""What a version does not record and nobody has given: asked for in one sentence, with a command that gives it."""

from mlflow_unlearn.config import Command, ReadOptions, Request, command_of
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.flavor import load_module
from mlflow_unlearn.registry.versions import Version
from mlflow_unlearn.spelling import spelled

_EXAMPLES = {"data": "csv:LIST.csv", "architecture": "package.module:factory", "transform": "none"}
_OTHERS = {
    "data": " (or folder:PATH, …)",
    "architecture": " (or timm:NAME, torchvision:NAME)",
    "transform": " (or imagenet, timm, python:module:function)",
}


def missing(version: Version, options: ReadOptions | Request, *, trains: bool) -> dict[str, str]:
    """What is needed and neither given nor known: option → what it is, in words.

    Args:
        version: from `loading.admitted`, unless the options are of `request`, which loads no model.
        options: of the command.
        trains: the version is to be trained again, for which a pt2 program is rebuilt.
    """
    known, found = version.reads, dict[str, str]()
    data, architecture = options.data or known.data, options.architecture or known.architecture
    if data is None:
        found["data"] = "its data source"
    if trains and version.format == "pt2" and architecture is None:
        found["architecture"] = "its architecture (its program, pt2, is rebuilt to be trained)"
    shape = version.input_shape
    seen = f"its signature takes images {list(shape)}" if shape is not None else "it has no signature"
    by_itself = (architecture or "").startswith("timm:") or (data or "").startswith("python:")
    if (options.transform or known.transform) is None and not by_itself:
        if isinstance(options, Request) or not is_timm(version):
            found["transform"] = f"its input transform ({seen})"
    return found


def is_timm(version: Version) -> bool:
    """Whether a pickled version is a model of timm's, which knows its transform."""
    if version.format != "pickle":
        return False
    return isinstance(getattr(load_module(version, None, 0, trainable=False), "pretrained_cfg", None), dict)


def require(version: Version, options: ReadOptions | Request, *, trains: bool) -> None:
    """Ask for all that is missing.

    Raises:
        UnlearnError: something is.
    """
    if found := missing(version, options, trains=trains):
        raise UnlearnError(f"{version.uri} does not record {asked(version, options, found)}")


def asked(version: Version, options: ReadOptions | Request, found: dict[str, str]) -> str:
    """What is missing, which options give it, and a command that has them."""
    known, named = version.reads, version.unconfirmed
    values = {name: getattr(named, name) or _EXAMPLES[name] for name in found}
    ways = [spelled(name, value) + _OTHERS[name] for name, value in values.items()]
    if isinstance(options, Command) and (options.classes or known.classes) is None:
        ways.append(f"{spelled('classes', 'NAMES')} unless the outputs are in the order of the source's classes")
    told = [value for name, value in values.items() if value == getattr(named, name)]
    doubt = f"; {' and '.join(told)} of its tag is code or a file, used only where you name it" if told else ""
    sentence = f"{_listed([*found.values()])}{doubt}: give {_listed(ways)}"
    if not isinstance(options, Command):
        return sentence
    return f"{sentence}. For example: {command_of(options.model_copy(update=values))}"


def _listed(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
