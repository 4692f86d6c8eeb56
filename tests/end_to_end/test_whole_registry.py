"""`locate` on a registry with everything that a registry has: thirty questions, each with the answer known by hand.

Twelve registered models of two real sources and a third with the ids of the second: chains, copies under other
names, two of another tool, a gold standard, one that is retired, and a LoggedModel that was never registered.
"""

import gzip
import json
import shutil
from pathlib import Path

import mlflow
import pandas
import pytest
import toy
from stores import call, copied, digits_folder

from mlflow_unlearn.data.loaders import load_source

FASHION = Path("/usr/share/datasets/fashion-mnist")
QUICK = ("--method", "finetune", "--params", '{"epochs": 1}', "--force")

pytestmark = pytest.mark.slow


def done(*arguments: object) -> str:
    outcome = call(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def train(name: str, data: str, *more: str) -> None:
    done(
        *("train", "--data", data, "--name", name, "--architecture", "toy:of_any_size"),
        *("--epochs", "1", "--batch-size", "32", *more),
    )


def written(folder: Path, name: str, ids) -> Path:
    path = folder / f"{name}.txt"
    path.write_text("\n".join(ids))
    return path


@pytest.fixture(scope="module")
def fashion(tmp_path_factory) -> Path:
    if not FASHION.exists():
        pytest.skip("install the Debian package dataset-fashion-mnist")
    root = tmp_path_factory.mktemp("fashion")
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in FASHION.glob("*.gz"):
        with gzip.open(file, "rb") as packed, (raw / file.stem).open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    return root


@pytest.fixture(scope="module")
def built(blank, fashion, tmp_path_factory):
    """The store, and the ids that each version was trained on and has not forgotten."""
    with copied(blank, tmp_path_factory.mktemp("registry")) as store:
        folder = store.folder
        clothes = f"torchvision:FashionMNIST@{fashion}"
        small, other_split = load_source("digits,train=15%"), load_source("digits,train=15%,seed=1")
        half, few = load_source("digits,train=30%"), load_source(f"{clothes},train=1%")
        knows = {}
        for name, data, source in (
            ("chain", "digits,train=15%", small),
            ("seeded", "digits,train=15%,seed=1", other_split),
            ("larger", "digits,train=30%", half),
            ("old", "digits,train=15%", small),
            ("clothes", f"{clothes},train=1%", few),
        ):
            # Were the one that is to be retired the same as another one, its weights would still be there.
            train(name, data, *(("--seed", "7") if name == "old" else ()))
            knows[f"{name}/1"] = set(source.train.ids)
        # A table with the ids of the second source.
        files = sorted(digits_folder(folder / "images", train=60, held_out=40).rglob("*.png"))
        table = {
            "path": files,
            "label": [path.parent.name for path in files],
            "id": [f"train/{i}" for i in range(100)],
            "split": ["test" if "test" in path.parts else "train" for path in files],
            "subject": [str(i % 20) for i in range(100)],
        }
        pandas.DataFrame(table).to_csv(folder / "table.csv", index=False)
        train("table", f"csv:{folder / 'table.csv'}")
        knows["table/1"] = set(load_source(f"csv:{folder / 'table.csv'}").train.ids)
        # A chain of two requests, the second one hashed; a gold standard of the first.
        first, second = small.train.ids[:10], small.train.ids[10:15]
        done("request", "--model-uri", "models:/chain/1", "--forget", written(folder, "first", first))
        [request_id] = store.requests("1", "chain")
        done("unlearn", "--model-uri", "models:/chain/1", *QUICK)
        hidden = ("--forget", written(folder, "second", second), "--hash-ids", "true")
        done("request", "--model-uri", "models:/chain/2", *hidden)
        [hashed_id] = store.requests("2", "chain")
        done("unlearn", "--model-uri", "models:/chain/2", *QUICK)
        train("gold", "digits,train=15%", "--exclude", request_id)
        knows["chain/2"] = knows["gold/1"] = knows["chain/1"] - set(first)
        knows["chain/3"] = knows["chain/2"] - set(second)
        # A clothes chain, where a class of the small source is forgotten.
        worn = few.train.ids[:20]
        done("unlearn", "--model-uri", "models:/clothes/1", "--forget", written(folder, "worn", worn), *QUICK)
        knows["clothes/2"] = knows["clothes/1"] - set(worn)
        # Copies under other names, one of them without any tag.
        for uri, name in (("chain/1", "copy"), ("chain/3", "shipped"), ("copy/1", "bare")):
            store.client.copy_model_version(f"models:/{uri}", name)
            knows[f"{name}/1"] = knows[uri]
        for key in store.tags("1", "bare"):
            store.client.delete_model_version_tag("bare", "1", key)
        # Another tool's: one that nobody knows anything of, one with a list.
        for name in ("foreign", "listed"):
            with mlflow.start_run():
                mlflow.pytorch.log_model(
                    toy.original(), name="m", registered_model_name=name, serialization_format="pickle",
                    pip_requirements=["torch"],
                )  # fmt: skip
        listed = half.train.ids[:50]
        lists = ("--data", "digits", "--ids", written(folder, "listed", listed))
        done("manifest", "--model-uri", "models:/listed/1", *lists)
        knows["listed/1"] = set(listed)
        # One is retired, and one LoggedModel lost its name.
        done("retire", "--model-uri", "models:/old/1", "--yes", "true")
        train("unnamed", "digits,train=15%,seed=2")
        lost = str(store.client.get_model_version("unnamed", "1").source).removeprefix("models:/")
        store.client.delete_registered_model("unnamed")
        store.client.set_registered_model_alias("chain", "champion", "3")
        store.client.set_model_version_tag("copy", "1", "unlearn.endpoint.edge", "https://edge.example.com")
        yield Built(store, knows, lost, first, second, worn, request_id, hashed_id, small, other_split, half, few)


class Built:
    """What was built, by its parts."""

    def __init__(self, store, knows, lost, first, second, worn, request_id, hashed_id, *sources):
        self.store, self.knows, self.lost = store, knows, lost
        self.first, self.second, self.worn = first, second, worn
        self.request_id, self.hashed_id = request_id, hashed_id
        self.small, self.other_split, self.half, self.few = sources

    def asked(self, *options: object) -> dict[str, dict]:
        """URI without ``models:/`` → what `locate` says of it."""
        answer = json.loads(done("locate", *options, "--format", "json"))["result"]
        assert answer["unanswered"] is None
        places = {place["uri"].removeprefix("models:/"): place for place in answer["places"]}
        return places | {"logged": answer["logged_models"], "looked_for": answer["looked_for"]}

    def containing(self, *options: object) -> set[str]:
        """The versions that contain some of what is asked for."""
        found = self.asked(*options)
        return {uri for uri, place in found.items() if isinstance(place, dict) and place["state"] == "contains"}

    def holding(self, ids, prefix: str) -> set[str]:
        """By hand: the versions of sources whose ids begin so that know one of these."""
        return {
            uri for uri, known in self.knows.items() if uri != "old/1" and known & set(ids) and self.of(uri, prefix)
        }

    def of(self, uri: str, prefix: str) -> bool:
        name = uri.partition("/")[0]
        kind = {"clothes": "clothes", "table": "table"}.get(name, "digits")
        return prefix in (kind, "any")


SETS = {
    "first": lambda b: b.first,
    "second": lambda b: b.second,
    "one of the first": lambda b: b.first[3:4],
    "both": lambda b: (*b.first, *b.second),
    "what stays": lambda b: b.small.train.ids[100:120],
    "one that stays": lambda b: b.small.train.ids[200:201],
    "of another split": lambda b: sorted(set(b.other_split.train.ids) - set(b.small.train.ids) - set(b.half.train.ids))[
        :9
    ],
    "of the larger alone": lambda b: sorted(
        set(b.half.train.ids[50:]) - set(b.small.train.ids) - set(b.other_split.train.ids)
    )[:9],
    "of the list": lambda b: b.half.train.ids[:3],
    "test samples": lambda b: sorted(
        set(load_source("digits").test.ids) - set().union(*(k for u, k in b.knows.items() if u != "old/1"))
    )[:9],
    "nobody": lambda b: ("digits/99999", "someone/1"),
    "all digits": lambda b: b.small.train.ids,
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", SETS)
def test_digits(built, name, tmp_path):
    """Twelve questions by ids; of each place also how many of them it knows."""
    ids = SETS[name](built)
    assert ids, "the question names nothing"
    found = built.asked("--forget", written(tmp_path, "ids", ids))
    expected = built.holding(ids, "any")
    containing = {uri for uri, place in found.items() if isinstance(place, dict) and place["state"] == "contains"}
    assert containing == expected
    for uri in expected:
        assert found[uri]["samples"] == len(built.knows[uri] & set(ids)), uri
    assert found["foreign/1"]["state"] == "unknown" and found["old/1"]["state"] == "retired"


@pytest.mark.parametrize(
    ("name", "unlearned"),
    [
        ("first", {"chain/2", "chain/3", "shipped/1"}),
        ("second", {"chain/3", "shipped/1"}),
        ("both", {"chain/3", "shipped/1"}),
        ("what stays", set()),
        ("nobody", set()),
    ],
)
def test_who_has_unlearned_them(built, name, unlearned, tmp_path):
    """Five questions: a gold standard never knew what others have unlearned."""
    found = built.asked("--forget", written(tmp_path, "ids", SETS[name](built)))
    assert {u for u, place in found.items() if isinstance(place, dict) and place["state"] == "unlearned"} == unlearned
    if name in ("first", "second"):
        by = set(found["chain/1"]["unlearned_by"])
        assert {f"models:/{uri}" for uri in unlearned} == by


def test_a_subject(built):
    """Samples of the table alone, whose ids are those of clothes as well."""
    found = built.asked("--forget", "group:subject=7", "--data", f"csv:{built.store.folder / 'table.csv'}")
    assert {u for u, place in found.items() if isinstance(place, dict) and place["state"] == "contains"} == {"table/1"}
    assert found["looked_for"] == 5


def test_a_subject_of_no_named_source(built):
    """Each source that a version records is asked; the others have no such column."""
    assert built.containing("--forget", "group:subject=7") == {"table/1"}


def test_one_id_of_two_sources(built, tmp_path):
    """Three questions about the same ids: of the one source, of the other, and of whichever."""
    both = sorted(built.knows["table/1"] & built.knows["clothes/2"])
    ids = written(tmp_path, "ids", both or sorted(built.knows["clothes/2"])[:3])
    table = f"csv:{built.store.folder / 'table.csv'}"
    clothes = json.loads(built.store.tags("1", "clothes")["unlearn.trained_on"])["source"]
    in_clothes = built.asked("--forget", ids, "--data", clothes)
    assert {u for u, p in in_clothes.items() if isinstance(p, dict) and p["state"] == "contains"} == {
        "clothes/1",
        "clothes/2",
    }
    if both:
        assert in_clothes["table/1"]["state"] == "another source"
        assert built.containing("--forget", ids, "--data", table) == {"table/1"}
    assert built.containing("--forget", ids) == built.holding(Path(ids).read_text().split(), "any")


def test_clothes_that_were_forgotten(built, tmp_path):
    clothes = json.loads(built.store.tags("1", "clothes")["unlearn.trained_on"])["source"]
    found = built.asked("--forget", written(tmp_path, "ids", built.worn), "--data", clothes)
    assert (found["clothes/1"]["state"], found["clothes/2"]["state"]) == ("contains", "unlearned")
    assert found["clothes/1"]["samples"] == 20 and found["clothes/1"]["unlearned_by"] == ["models:/clothes/2"]


@pytest.mark.parametrize("which", ["plain", "hashed"])
def test_a_request_by_its_id(built, which):
    """Two questions: what a request names, also where its ids are hashed."""
    request_id, ids = {"plain": (built.request_id, built.first), "hashed": (built.hashed_id, built.second)}[which]
    assert built.containing("--forget", f"request:{request_id}") == built.holding(ids, "digits")


def test_a_class(built):
    """Of every source that has it: nobody has forgotten it wholly."""
    found = built.containing("--forget", "class:3", "--data", "digits")
    assert found == {u for u in built.knows if u != "old/1" and built.of(u, "digits")}


def test_the_logged_model_without_a_name(built, tmp_path):
    lost = load_source("digits,train=15%,seed=2").train.ids[:5]
    found = built.asked("--forget", written(tmp_path, "ids", lost))
    assert found["logged"] == [f"models:/{built.lost}"]
    failed = call("locate", "--forget", written(tmp_path, "ids", lost), "--fail-on", "contains")
    assert failed.code == 3 and built.lost in failed.err


def test_aliases_endpoints_and_copies_are_named(built, tmp_path):
    found = built.asked("--forget", written(tmp_path, "ids", built.first))
    assert found["copy/1"]["endpoints"] == {"edge": "https://edge.example.com"}
    assert found["chain/3"]["aliases"] == ["champion"]
    assert found["bare/1"]["state"] == "contains"


def test_as_the_cache_is_thrown_away(built, tmp_path, monkeypatch):
    ids = written(tmp_path, "ids", built.small.train.ids[:40])
    first = built.asked("--forget", ids)
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "new"))
    assert built.asked("--forget", ids) == first
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", "off")
    assert built.asked("--forget", ids) == first


def test_the_registry_is_what_it_says(built):
    assert len(built.store.client.search_registered_models()) == 12
