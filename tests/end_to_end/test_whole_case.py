"""docs/case.md as it is typed: one subject, from the letter to the dossier that anybody can check."""

import json
import re
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import toy
from stores import Store, call, copied, digits_folder, log_pt2
from typed import Page

from mlflow_unlearn.evidence import dossier_verify
from mlflow_unlearn.evidence.dossier import write_zip

PAGE = Path(__file__).parents[2] / "docs" / "case.md"
TRAIN = ("--data", "csv:table.csv", "--architecture", "timm:test_resnet", "--lr", "0.1", "--batch-size", "32")
SUBJECT = ("--forget", "group:subject=17")


@pytest.fixture(params=[0, pytest.param(1, marks=pytest.mark.nightly), pytest.param(2, marks=pytest.mark.nightly)])
def seed(request) -> int:
    return int(request.param)


@pytest.fixture
def served(blank, tmp_path, monkeypatch, seed):
    """Two models that were trained on the table and are served, and one of another tool, which wasn't."""
    monkeypatch.setenv("LOGNAME", "erin")
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))  # `retire` deletes from it
    with copied(blank, tmp_path / "store") as store:
        folder = store.folder
        table = faces(folder)
        others = table[(table.split == "train") & (table.subject == "18")]
        (folder / "legacy.txt").write_text("\n".join(others.path))
        for name, epochs in (("entry", 20), ("desk", 15)):
            trained = call("train", "--name", name, *TRAIN, "--epochs", epochs, "--seed", seed)
            assert trained.code == 0, trained.err
            store.client.set_registered_model_alias(name, "champion", "1")
        log_pt2(toy.original(), "legacy")
        yield store


def faces(folder: Path) -> pandas.DataFrame:
    """The table: 40 of 400 training images, drawn by chance as the test images are, show subject 17."""
    files = sorted(digits_folder(folder / "images", train=700, held_out=0).rglob("*.png"))
    drawn = np.random.default_rng(0).permutation(len(files))
    table = pandas.DataFrame(
        {
            "path": [str(path.relative_to(folder)) for path in files],
            "label": [path.parent.name for path in files],
            "split": np.where(drawn < 400, "train", "test"),
            "subject": np.where(drawn < 40, "17", "18"),
        }
    )
    table.to_csv(folder / "table.csv", index=False)
    return table


def states(places: dict[str, Any]) -> dict[str, str]:
    return {place["uri"]: place["state"] for place in places["places"]}


@pytest.mark.nightly
def test_the_whole_case(served, seed):
    due = (datetime.now(UTC) + timedelta(days=27)).date().isoformat()
    page = Page(PAGE, served.folder, ours={"2026-12-24": due}, more={"train": ["--seed", seed]})
    old, new = (["models:/desk/1", "models:/entry/1"], ["models:/desk/2", "models:/entry/2"])

    found = page.give("locate")
    assert states(found) == dict.fromkeys(old, "contains") | {"models:/legacy/1": "unknown"}
    page.give("manifest")

    case = page.give("request")
    assert [one["uri"] for one in case["requests"]] == old and not case["failed"]
    assert [one["samples"] for one in case["requests"]] == [40, 40] and found["looked_for"] == 40

    [due] = page.give("requests")["cases"]
    assert (due["id"], due["state"], due["days_left"], due["still_in"]) == (case["case_id"], "open", 27, old)

    done = page.give("requests")
    assert [(one["outcome"], one["registered"]) for one in done["fulfilled"]] == [("fulfilled", uri) for uri in new]
    assert (done["cases"][0]["state"], done["cases"][0]["still_in"]) == ("done", old)

    for name, uri in (("entry", new[1]), ("desk", new[0])):
        assert page.give("train")["registered"]["uri"] == f"models:/{name}-gold/1"
        audit = page.give("audit", code=None)  # of honest ones some alarm by chance, and this policy asks for none
        assert audit["uri"] == uri and audit["audit"]["tier"] == 1

    (served.folder / "policy.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```$", page.text, re.M | re.S)[0])
    assert [page.give("review")["passed"] for _ in new] == [True, True]
    assert [page.give("promote")["objections"] for _ in new] == [[], []]
    champions = {name: served.client.get_model_version_by_alias(name, "champion") for name in ("entry", "desk")}
    assert {name: str(version.version) for name, version in champions.items()} == {"entry": "2", "desk": "2"}

    for uri in reversed(old):
        retired = page.give("retire")
        assert retired["done"] and retired["proof"]["proven"] and retired["versions"] == [uri]

    places = page.give("locate")
    assert states(places) == dict.fromkeys(old, "retired") | dict.fromkeys(new, "unlearned")
    assert not any(places[where] for where in ("logged_models", "runs", "references", "cached", "checkpoints"))

    written = page.give("dossier")
    assert (written["case"], written["missing"], written["failures"]) == (case["case_id"], {}, [])
    assert written["still_open"] == []
    page.shell("python3 -m zipfile")
    page.shell("cd dossier && python3 -I -S verify.py")
    assert page.left() == []
    every_byte_counts(served, Path(written["file"]))


def every_byte_counts(store: Store, made: Path) -> None:
    """One changed byte in each of its files, zipped anew: the check, without any package, names that file."""

    def alone(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-I", "-S", *map(str, arguments)], capture_output=True, text=True)

    assert "No module named 'mlflow'" in alone("-c", "import mlflow").stderr
    with zipfile.ZipFile(store.folder / made) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for name, content in files.items():
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        write_zip(files | {name: flipped}, store.folder / "flipped.zip")
        refused = alone(dossier_verify.__file__, store.folder / "flipped.zip")
        assert refused.returncode == 1 and name in refused.stdout + refused.stderr, (name, refused)
    assert json.loads(files["case.json"])["id"] and alone(dossier_verify.__file__, store.folder / made).returncode == 0
