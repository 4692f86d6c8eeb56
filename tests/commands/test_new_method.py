"""`new-method`: what is written, and what is refused."""

import tomllib
from pathlib import Path

import pytest
from answers import answer

from mlflow_unlearn import methods

EXAMPLE = Path(__file__).parents[2] / "plugins" / "example_method"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_plugin_is_written(here, cli):
    done = cli("new-method", "my_idea")
    assert done.code == 0, done.err
    module = here / "my_idea" / "src" / "mlflow_unlearn_my_idea" / "__init__.py"
    assert "YOUR IDEA" in module.read_text("utf-8")
    files = [here / "my_idea" / name for name in ("README.md", "pyproject.toml", "tests/test_my_idea.py")]
    assert all("my_idea" in file.read_text("utf-8") and "$" not in file.read_text("utf-8") for file in files)
    assert "  pip install -e my_idea pytest\n  python -m pytest my_idea\n" in done.out
    built = tomllib.loads((here / "my_idea" / "pyproject.toml").read_text("utf-8"))
    assert built["project"]["entry-points"]["mlflow_unlearn.methods"] == {
        "my_idea": "mlflow_unlearn_my_idea:MyIdeaMethod"
    }


def test_it_is_built_as_the_example_is(cli, here):
    """Two files say how a plugin is built: one that people read, and one that they get."""
    assert cli("new-method", "my_idea").code == 0
    ours, theirs = (
        tomllib.loads((folder / "pyproject.toml").read_text("utf-8")) for folder in (EXAMPLE, here / "my_idea")
    )
    assert ours["build-system"] == theirs["build-system"]
    assert ours["tool"]["setuptools"] == theirs["tool"]["setuptools"]
    names = ("name", "description", "entry-points")
    assert [{k: v for k, v in one["project"].items() if k not in names} for one in (ours, theirs)] == [
        {k: v for k, v in ours["project"].items() if k not in names}
    ] * 2


def test_the_code_is_a_method(here, cli, monkeypatch):
    """Every name can be one: in Python ``None`` could not be a class."""
    assert cli("new-method", "none").code == 0
    monkeypatch.syspath_prepend(here / "none" / "src")
    from mlflow_unlearn_none import NoneMethod

    assert NoneMethod.name == "none" and NoneMethod().params.epochs == 5


def test_programs_read_where_it_is(here):
    (here / "elsewhere").mkdir()
    result = answer("new-method", "--name", "my_idea", "--path", "elsewhere")["result"]
    folder = here / "elsewhere" / "my_idea"
    assert result["folder"] == str(folder) and result["name"] == "my_idea"
    assert {str(folder / name) for name in result["files"]} == {
        str(path) for path in folder.rglob("*") if path.is_file()
    }
    assert result["next"][0] == "pip install -e elsewhere/my_idea pytest"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("lotus",), "there is a method 'lotus' already: give another name, such as my_lotus"),
        (("My-Idea",), "--name My-Idea is not usable: give small letters, digits and single _, beginning with a "),
        (("2fast",), "beginning with a letter, such as fast"),
        (("idée",), "is not usable"),
        (("a__b",), "is not usable"),
        (("a/b",), "such as a_b"),
        (("all",), "have a meaning of their own where methods are named"),
        (("",), "is not usable"),
        ((), "Missing option '--name'"),
        (("one", "--name", "two"), "'one' is given beside --name: give one of them"),
        (("one", "two"), "unexpected extra argument"),
        (("taken",), "'taken' is there already: give another name, or another folder with --path"),
        (("dangling",), "'dangling' is there already"),
        (("one", "--path", "nowhere"), "--path nowhere is not a folder"),
        (("one", "--path", "file"), "--path file is not a folder"),
        (("x" * 300,), "cannot be written"),
        (("example",), "there is a package 'mlflow_unlearn_example' already"),
    ],
)
def test_what_is_refused_leaves_nothing(here, cli, monkeypatch, arguments, sentence):
    monkeypatch.syspath_prepend(EXAMPLE / "src")
    (here / "taken").mkdir()
    (here / "dangling").symlink_to("nowhere")
    (here / "file").touch()
    before = everything(here)
    done = cli("new-method", *arguments)
    assert done.code == 2 and sentence in " ".join(done.err.split()), done.err
    assert everything(here) == before


def test_a_plugin_that_cannot_be_loaded_has_its_name(here, cli, monkeypatch):
    monkeypatch.setattr(methods, "loaded_plugins", lambda: ({}, {"broken": "it fails to import"}))
    done = cli("new-method", "broken")
    assert done.code == 2 and "there is a method 'broken' already" in done.err and not everything(here)


def test_a_disk_that_is_full_leaves_nothing(here, cli, monkeypatch):
    """After the first files: what was begun is gone."""

    def full(path, *text, **more):
        if path.name.startswith("test_"):
            raise OSError(28, "No space left on device")
        return written(path, *text, **more)

    written = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    done = cli("new-method", "one")
    assert done.code == 2 and "(No space left on device)" in done.err and not everything(here)
