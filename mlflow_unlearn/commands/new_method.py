"""`new-method`: the folder of a method of one's own, which can be installed and tested as it is."""

import importlib.util
import shlex
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

from pydantic import Field

from mlflow_unlearn import config
from mlflow_unlearn.answer import CommandResult
from mlflow_unlearn.console import first_line, say, say_command
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.methods import TEMPLATES, all_methods, plugin_failures
from mlflow_unlearn.spelling import spelled


class NewMethodResult(CommandResult):
    """What was written."""

    name: str
    folder: str = Field(description="Its path, absolute.")
    files: list[str] = Field(description="Paths within the folder.")
    next: list[str] = Field(description="Commands that install it, test it, and put it beside other methods.")


def new_method(options: config.NewMethod) -> NewMethodResult:
    """Write the folder at once or not at all, and print what to do with it.

    Raises:
        UnlearnError: the name is taken, something of that name is there, or the folder cannot be written.
    """
    name, parent = options.name, Path(options.path)
    if name in all_methods() or name in plugin_failures():
        raise UnlearnError(f"there is a method {name!r} already: give another name, such as my_{name}")
    words = {
        "name": name,
        "class_name": "".join(part.capitalize() for part in name.split("_")) + "Method",
        "module": f"mlflow_unlearn_{name}",
        "distribution": f"mlflow-unlearn-{name.replace('_', '-')}",
    }
    if importlib.util.find_spec(words["module"]) is not None:
        raise UnlearnError(f"there is a package {words['module']!r} already: give another name, such as my_{name}")
    files = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"src/{words['module']}/__init__.py": "method.py",
        f"tests/test_{name}.py": "test_method.py",
    }
    templates = {file: Template((TEMPLATES / f"{of}.in").read_text("utf-8")) for file, of in files.items()}
    texts = {file: template.substitute(words) for file, template in templates.items()}
    folder = parent / name
    try:
        _write(texts, folder)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UnlearnError(f"the folder {str(folder)!r} cannot be written in {options.path!r} ({reason})") from error
    there = shlex.quote(str(folder))
    following = [
        f"pip install -e {there} pytest",
        f"python -m pytest {there}",
        "mlflow-unlearn methods",
        f"mlflow-unlearn compare --model-uri models:/clf/1 --forget random:10% --methods {name},finetune,lotus",
    ]
    say(f"Wrote the method {name} to {folder}: YOUR IDEA marks what to change in src/{words['module']}/__init__.py.")
    say("Next:")
    for command in following:
        say_command(command)
    return NewMethodResult(name=name, folder=str(folder.absolute()), files=list(texts), next=following)


def _write(texts: dict[str, str], folder: Path) -> None:
    """Beside its place first: what is there afterwards is whole.

    Raises:
        UnlearnError: there is something already, or nothing that it could be in.
    """
    if folder.exists() or folder.is_symlink():
        raise UnlearnError(
            f"{str(folder)!r} is there already: give another name, or another folder with {spelled('path')}"
        )
    if not folder.parent.is_dir():
        raise UnlearnError(f"{spelled('path', str(folder.parent))} is not a folder: give one that exists")
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        built = Path(scratch) / folder.name
        for file, text in texts.items():
            (built / file).parent.mkdir(parents=True, exist_ok=True)
            (built / file).write_text(text, encoding="utf-8")
        built.rename(folder)
