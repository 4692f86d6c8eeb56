"""docs/case.md as it is typed: one subject, from the letter to the dossier that anybody can check."""

import json
import re
import shlex
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
from answers import checked
from stores import Store, call, copied, digits_folder, log_pt2

from mlflow_unlearn.evidence import dossier_verify
from mlflow_unlearn.evidence.dossier import write_zip

PAGE = Path(__file__).parents[2] / "docs" / "case.md"
TRAIN = ("--data", "csv:table.csv", "--architecture", "timm:test_resnet", "--lr", "0.1", "--batch-size", "32")
SUBJECT = ("--forget", "group:subject=17")
ID = re.compile(r"\b[0-9a-f]{12}\b")


def masked(text: str) -> list[str]:
    """The words of each line, without what differs from one time and machine to the next."""
    text = re.sub(r"\b(m-)?[0-9a-f]{12,}\b", "ID", re.sub("[┏┓┗┛━┳┻╇┡┩┃│├┤┼└┘─┴┬]", " ", text))
    text = re.sub(r"\d+", "#", re.sub(r"-?\d+\.\d+", "#", text.replace("−", "-")))
    return [line for line in (" ".join(line.split()) for line in text.splitlines()) if line]


class Page:
    """The commands of the page, one after another, each with what the page says that it prints."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.text = PAGE.read_text(encoding="utf-8")
        blocks = re.findall(r"^```console\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        steps = [step.partition("\n") for block in blocks for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
        self._steps = [(command, output) for command, _, output in steps]
        self._folder, self._seed = folder, seed
        due = (datetime.now(UTC) + timedelta(days=27)).date().isoformat()
        self._ours = {"2026-12-24": due}  # what the page says → what it is here

    def left(self) -> list[str]:
        return [command for command, _ in self._steps]

    def _next(self, beginning: str) -> tuple[str, str]:
        command, output = self._steps.pop(0)
        for word, ours in self._ours.items():
            command = command.replace(word, ours)
        assert command.startswith(beginning), command
        return command, output

    def give(self, name: str, code: int | None = 0) -> dict[str, Any]:
        """Give the next command, which is this one; its result. Without a code it may be refused."""
        command, output = self._next(f"mlflow-unlearn {name}")
        more = ["--seed", self._seed] if name == "train" else []
        done = call(*shlex.split(command)[1:], *more, "--format", "json")
        ended = done.code if code is None and done.code in (0, 3) else code or 0
        answer = checked(done, name, code=ended)
        if code is not None:
            self._compare(command, output, done.err)
        result: dict[str, Any] = answer["result"]
        return result

    def shell(self, beginning: str) -> str:
        command, output = self._next(beginning)
        done = subprocess.run(["bash", "-c", command], cwd=self._folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        self._compare(command, output, done.stdout)
        return done.stdout

    def _compare(self, command: str, output: str, printed: str) -> None:
        """Each line of the page was printed, but for figures; from now on its ids are those of this store."""
        there = masked(printed.replace(str(self._folder), "~"))
        missing = [line for line in masked(output) if line != "…" and line not in there]
        assert not missing, f"{command}\nprinted:\n{printed}\nthe page has {missing} besides"
        for word, ours in zip(ID.findall(output), ID.findall(printed), strict=False):
            self._ours.setdefault(word, ours)  # `request` names all of them first


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


@pytest.mark.slow
def test_the_whole_case(served, seed):
    page = Page(served.folder, seed)
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
