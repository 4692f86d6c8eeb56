"""docs/own-method.md as it is typed: from an idea to a comparison on one's own images."""

import re
from pathlib import Path

import pytest
from environments import Environment
from stores import digits_folder

PAGE = Path(__file__).parents[2] / "docs" / "own-method.md"


@pytest.mark.slow
def test_the_page_as_it_is_typed(empty_store, tmp_path):
    commands = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    words = [line.split()[:2] for line in commands.splitlines()]
    assert [line[1] for line in words if line[0] == "mlflow-unlearn"] == ["new-method", "methods", "train", "compare"]
    digits_folder(empty_store.folder / "photos", 100, 100)
    done = Environment(tmp_path / "venv").shell(commands, empty_store.folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"^=+ \d+ passed in ", done.stdout, re.MULTILINE), done.stdout
    listed, table = done.stdout.partition("methods against retraining")[::2]
    assert "my_idea" in listed.partition("passed in")[2]
    assert {"original", "retrain", "floor", "my_idea", "finetune", "lotus"} <= set(re.findall(r"\w+", table))
    [compared] = [r for r in empty_store.runs() if r.data.tags.get("unlearn.command") == "compare"]
    assert compared.info.status == "FINISHED" and empty_store.versions() == ["1"]
