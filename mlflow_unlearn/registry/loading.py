"""What loading a version would run, decided from its files alone: the one way from an opened version to a loaded one.

The list is on the safe side: what is not known to hold data alone counts as code.
"""

from collections.abc import Iterator
from dataclasses import replace

from mlflow_unlearn.config import ReadOptions, Request
from mlflow_unlearn.engine.architectures import is_factory
from mlflow_unlearn.errors import Refused
from mlflow_unlearn.registry.inputs import Inputs
from mlflow_unlearn.registry.programs import code_in_program
from mlflow_unlearn.registry.versions import Version
from mlflow_unlearn.spelling import spelled


def admitted(version: Version, options: ReadOptions | Request) -> Version:
    """The version with what loading it will run in ``code``; a `Request` loads only its data and what it is given.

    Raises:
        Refused: there is something, and the options forbid it.
    """
    found = tuple(_code(version, options))
    if found and options.no_code:
        raise Refused(
            f"loading {version.uri} would run code ({'; '.join(found)}), which {spelled('no_code', True)} forbids: "
            f"nothing was loaded; leave {spelled('no_code')} out if you trust all of it, or choose a version in pt2 "
            "format of a known architecture"
        )
    return replace(version, code=found)


def _code(version: Version, options: ReadOptions | Request) -> Iterator[str]:
    known = Inputs() if isinstance(options, Request) else version.reads
    data = options.data or version.reads.data
    if data is not None and data.startswith("python:"):
        yield f"its data source is {data}"
    if not isinstance(options, Request):
        yield from _code_of_model(version)
    transform = options.transform or known.transform
    if transform is not None and transform.startswith("python:"):
        yield f"its transform is {transform}"
    architecture = options.architecture or known.architecture
    if architecture is not None and is_factory(architecture):
        yield f"its architecture is the function {architecture}"


def _code_of_model(version: Version) -> Iterator[str]:
    if version.format == "pickle":
        yield "its model is a pickle"
    elif (reason := code_in_program(version.program)) is not None:
        yield f"its exported program {reason}"
    if version.model.flavors["pytorch"].get("code"):
        yield "it brings a folder of code, which is searched first for all that is imported"
