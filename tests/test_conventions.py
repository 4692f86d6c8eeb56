"""House rules that a machine can check; see CONTRIBUTING."""

import ast
import importlib
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

import mlflow_unlearn
from mlflow_unlearn import errors
from mlflow_unlearn.answer import result_of
from mlflow_unlearn.cli import COMMANDS, command_function
from mlflow_unlearn.methods import BUILTIN

ROOT = Path(__file__).parents[1]
MATHS = ("metrics", "data", "engine", "methods", "evidence", "api", "testing", "console", "rng", "cache", "config")
"""Packages and modules that know no MLflow; import-linter holds them to it as well."""
MODULES = [
    name.removeprefix("mlflow_unlearn.")
    for _, name, _ in pkgutil.walk_packages(mlflow_unlearn.__path__, "mlflow_unlearn.")
    if not name.endswith("__main__")
]

USE = """
import sys
from mlflow_unlearn import Splits, evaluate, unlearn
from toy import original, splits
result = unlearn(original(), splits(), "lotus", {"epochs": 1})
evaluate(result.model, splits(), original(), original())
import importlib
for name in sys.argv[1:]:
    importlib.import_module("mlflow_unlearn." + name)
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("mlflow", "optuna", "click")))
"""


def python(code, *arguments):
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_the_maths_does_without_mlflow():
    """Neither importing nor using it loads the registry, the tuner or the command line."""
    modules = [name for name in MODULES if name.partition(".")[0] in MATHS]
    assert python(USE, *modules) == "[]"


def test_importing_the_package_does_not_wait_for_torch():
    assert python("import sys, mlflow_unlearn; print('torch' in sys.modules)") == "False"


@pytest.mark.slow
def test_deciding_does_not_wait_for_torch():
    """To review or promote only reads files, and to look for ids only lists of ids."""
    commands = ("review", "promote", "verify", "retire", "dossier", "locate", "requests")
    modules = ", ".join(f"mlflow_unlearn.commands.{name}" for name in commands)
    assert python(f"import sys, {modules}; print({{'torch', 'optuna', 'matplotlib'}} & set(sys.modules))") == "set()"


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_documented(name):
    module = importlib.import_module(f"mlflow_unlearn.{name}")
    assert module.__doc__
    public = [
        value
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    for value in public:
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert (value.__doc__ or "").strip(), f"{value.__qualname__} has no docstring"
        if inspect.isclass(value):
            for key, member in vars(value).items():
                if not key.startswith("_") and inspect.isfunction(member):
                    assert inspect.getdoc(member), f"{value.__qualname__}.{key} has no docstring"


def public_functions(body, owner=""):
    """(qualified name, node) of the functions in a module's body, and of the methods of its public classes."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{owner}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield owner + node.name, node


def own_nodes(node):
    """All below a function but what stands in functions and classes inside it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            yield child
            yield from own_nodes(child)


def undocumented(code, errors):
    """``name: Args`` where four arguments or more are not explained, ``name: Raises`` where one of ``errors`` is not.

    A method without a docstring has that of the method that it overrides.
    """
    for name, function in public_functions(ast.parse(code).body):
        docstring, given = ast.get_docstring(function), function.args
        if docstring is None:
            continue
        arguments = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
        names = [argument.arg for argument in arguments if argument is not None]
        if len(names) - (names[:1] in (["self"], ["cls"])) >= 4 and "Args:" not in docstring:
            yield f"{name}: Args"
        raises = (node.exc for node in own_nodes(function) if isinstance(node, ast.Raise) and node.exc is not None)
        calls = {ast.unparse(error.func if isinstance(error, ast.Call) else error) for error in raises}
        if calls & errors and "Raises:" not in docstring:
            yield f"{name}: Raises"


def test_what_counts_as_undocumented():
    code = """
def few(a, b, *, c): "Three."
def many(a, b, *, c, **d): "Four."
def explained(a, b, c, d): "Args: Raises:"; raise Bad("x")
def fails(): "No reason."; raise Bad("x")
def others(): "Not ours."; raise Other
class Public:
    def method(self, a, b, c): "Three."
    def long(self, a, b, c, d): "Four."
    def overrides(self, a, b, c, d): raise Bad
    def wraps(self):
        "Its own body raises nothing."
        def inner(a, b, c, d): raise Bad
class _Private:
    def long(self, a, b, c, d): "Four."
"""
    assert list(undocumented(code, {"Bad"})) == ["many: Args", "fails: Raises", "Public.long: Args"]


def test_arguments_and_errors_are_documented():
    names = {"ValueError", *(name for name, value in vars(errors).items() if inspect.isclass(value))}
    missing = {
        f"{path.relative_to(ROOT)} {what}"
        for path in (ROOT / "mlflow_unlearn").rglob("*.py")
        for what in undocumented(path.read_text(encoding="utf-8"), names)
    }
    assert not missing


def test_the_public_api_is_what_it_says():
    assert {"Splits", "evaluate", "unlearn"} <= set(mlflow_unlearn.__all__)
    for name in mlflow_unlearn.__all__:
        assert getattr(mlflow_unlearn, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Splitz'"):
        mlflow_unlearn.Splitz  # noqa: B018


def used_names(tree):
    """Dotted names of what a module imports, and of the attributes that it takes of imported things."""
    bound = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                bound[alias.asname or alias.name.partition(".")[0]] = alias.name if alias.asname else ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                bound[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = ast.unparse(node).split(".")
            if parts[0] in bound:
                yield ".".join([bound[parts[0]] or parts[0], *parts[1:]])


def foreign_privates(code, module, roots):
    """What a module uses below ``roots`` that is private elsewhere; a private module is for its own folder.

    Args:
        code: of the module.
        module: its dotted name.
        roots: top packages, or None for all.
    """
    package = module.rpartition(".")[0]
    found = set()
    for name in used_names(ast.parse(code)):
        parts = name.split(".")
        for index, part in enumerate(parts):
            private = part.startswith("_") and not (part.startswith("__") and part.endswith("__"))
            if private and (roots is None or parts[0] in roots):
                path = ROOT.joinpath(*parts[: index + 1]).with_suffix(".py")
                if not (path.exists() and ".".join(parts[:index]) == package):
                    found.add(name)
    return found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from mlflow_unlearn.data._index import pack", set()),
        ("from mlflow_unlearn.data import _index; _index.pack", set()),
        ("from mlflow_unlearn import __version__; import mlflow._x", set()),
        ("from mlflow_unlearn.metrics._arrays import Floats", {"mlflow_unlearn.metrics._arrays.Floats"}),
        ("def f():\n from mlflow_unlearn.data.source import _x", {"mlflow_unlearn.data.source._x"}),
        ("from mlflow_unlearn.data import _index; _index._x", {"mlflow_unlearn.data._index._x"}),
        ("import mlflow_unlearn.cli; mlflow_unlearn.cli._x()", {"mlflow_unlearn.cli._x"}),
        ("import mlflow_unlearn.cli as cli; cli._x.y", {"mlflow_unlearn.cli._x", "mlflow_unlearn.cli._x.y"}),
    ],
)
def test_what_counts_as_private_to_others(code, found):
    assert foreign_privates(code, "mlflow_unlearn.data.loaders", {"mlflow_unlearn"}) == found


def test_no_two_classes_share_a_name():
    """But for options, which are named after their commands."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "mlflow_unlearn").rglob("*.py")}
    names = Counter(
        node.name
        for path, tree in trees.items()
        if path.name != "config.py"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    )
    assert names and not [name for name, count in names.items() if count > 1]


def test_modules_import_no_private_name_of_each_other():
    found = {}
    for path in (ROOT / "mlflow_unlearn").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[module] = foreign_privates(path.read_text(encoding="utf-8"), module, {"mlflow_unlearn"})
    assert found and not any(found.values()), {name: names for name, names in found.items() if names}


def test_plugins_import_public_names_only():
    """Nor MLflow's private names, which may change with any release."""
    paths = list((ROOT / "plugins").glob("*/src/**/*.py"))
    found = {str(path): foreign_privates(path.read_text(encoding="utf-8"), "", None) for path in paths}
    assert found and not any(found.values()), found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_returns(name):
    """So that its answer for programs has a schema."""
    assert result_of(command_function(name)) is not None


PAGES = ROOT / "docs" / "methods"
DOCUMENTED = {name: method for name, method in BUILTIN.items() if name != "lotus"}


def table(path, header):
    """The cells of the one table in a Markdown file that has this header."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = lines.index(header) + 2
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start:])
    ]


def bounds(field):
    """``[("", 1.0), ("<", 5.0)]`` for "1 to < 5"."""
    signs = {"gt": ">", "ge": "", "le": "", "lt": "<"}
    return [(sign, float(getattr(m, key))) for key, sign in signs.items() for m in field.metadata if hasattr(m, key)]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_method_has_a_page_whose_table_is_the_codes(name):
    page = PAGES / f"{name}.md"
    rows = table(page, "| name | default | range | meaning |")
    fields = DOCUMENTED[name].Params.model_fields
    assert [row[0] for row in rows] == [f"`{field}`" for field in fields]
    for (_, default, written, meaning), field in zip(rows, fields.values(), strict=True):
        assert default == f"`{field.default!r}`" and meaning
        choices = [f"`{choice}`" for choice in get_args(field.annotation)] if isinstance(field.default, str) else []
        numbers = [(sign, float(value)) for sign, value in re.findall(r"([<>]?) ?(\d[\d.e+-]*)", written)]
        assert written == ", ".join(choices) if choices else numbers == bounds(field), (written, field)
    text = page.read_text(encoding="utf-8")
    for part in (
        "**Cost:**",
        "**BatchNorm:**",
        "## Known weaknesses",
        "## Where we differ from published code, and why",
    ):
        assert text.count(part) == 1, part
    assert len(text.splitlines()) <= 60


def test_the_index_of_the_methods_is_the_registry():
    links = [row[0] for row in table(PAGES / "README.md", "| name | paper | what it does | cost |")]
    pages = {name: f"{name}.md" for name in BUILTIN} | {"lotus": "../method.md"}
    assert links == [f"[`{name}`]({page})" for name, page in pages.items()]
    assert {page.stem for page in PAGES.glob("*.md")} == {*DOCUMENTED, "README"}


def test_contributing_shows_the_example_as_it_is():
    example = ROOT / "plugins" / "example_method"
    code = (example / "src" / "mlflow_unlearn_example" / "__init__.py").read_text(encoding="utf-8")
    shown = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert f"```python\n{code}```\n" in shown
    assert len(code.splitlines()) <= 60
    entry = re.search(r"\[project\.entry-points.*\]\n.*\n", (example / "pyproject.toml").read_text(encoding="utf-8"))
    for page in (shown, (example / "README.md").read_text(encoding="utf-8")):
        assert f"```toml\n{entry.group()}```\n" in page


DOCUMENTS = [
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "plugins/*/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
]


def without_code(page):
    """The prose of a page: a fenced block may hold what looks like a link or a heading."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_links_lead_somewhere(page):
    text = without_code(page)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        file = page.parent / target if target else page
        assert (ROOT / file).exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


CODE = [
    path.relative_to(ROOT).as_posix()
    for top in ("mlflow_unlearn", "plugins", "benchmarks", "docs", "tests")
    for path in (ROOT / top).rglob("*.py")
]


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_modules_that_documents_name_are_there(page):
    """By their paths from the root, or the ends of them, such as ``metrics/catalog.py``."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.>])(?:\w+/)*\w+\.py\b", text):
        assert any(f"/{path}".endswith(f"/{name}") for path in CODE), name


@pytest.mark.parametrize("page", DOCUMENTS, ids=str)
def test_names_that_documents_import_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for module, name in re.findall(r"from (mlflow_unlearn[\w.]*) import (\w+)", text):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
