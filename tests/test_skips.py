"""Where MLFLOW_UNLEARN_NO_SKIPS is set, only what the machine itself lacks may be skipped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MARKED = """
import pytest
MARKER = pytest.mark.machine("Linux")

@MARKER
def test_of_the_machine():
    raise AssertionError("the machine lacks what this needs")

@pytest.mark.parametrize("value", [1, pytest.param(2, marks=MARKER)])
def test_of_the_machine_in_one_case(value):
    assert value == 1
"""
INSTALLABLE = """
def test_of_a_package():
    pytest.skip("install it")
"""


def run(folder, content, *options, no_skips="1"):
    """A run of pytest over one file with our hooks, as on a machine without Linux."""
    ours = (Path(__file__).parent / "machine.py").read_text()
    (folder / "conftest.py").write_text(f"{ours}\nMACHINE['Linux'] = (lambda: False, MACHINE['Linux'][1])\n")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = machine\naddopts = --strict-markers -ra\n")
    (folder / "test_it.py").write_text(content)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        env=environment | {"MLFLOW_UNLEARN_NO_SKIPS": no_skips, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_what_the_machine_lacks_is_skipped_with_the_reason(tmp_path):
    done = run(tmp_path, MARKED)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 2 skipped" in done.stdout and "this machine: it does not run Linux" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("no_skips", "code"), [("1", 1), ("", 0)])
def test_what_could_be_installed_may_not_be_skipped(tmp_path, no_skips, code):
    """With the workers of `make test`, whose reports come from another process."""
    done = run(tmp_path, MARKED + INSTALLABLE, "-p", "xdist.plugin", "-n", "1", no_skips=no_skips)
    assert done.returncode == code, done.stdout
    assert "1 passed, 3 skipped" in done.stdout and "install it" in done.stdout
    assert ("1 tests were skipped that this machine could run" in done.stdout) is bool(code)


def test_an_unknown_need_is_an_error(tmp_path):
    done = run(tmp_path, "import pytest\n\n@pytest.mark.machine('quick')\ndef test_it(): pass\n")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "the marker machine takes one of bfloat16, CUDA, no CUDA, Linux" in done.stderr
