"""An ensemble: requests one after the other, retirement, kills. What is forgotten is in no checkpoint that is left."""

import hashlib
import json
import re
import shutil
import signal

import numpy as np
import pytest
from kills import Forge, contents, leftovers
from servers import mlflow_server
from sharding import SHARDED, checkpoint_files, listed, placed_at, record_of
from stores import DATA, Store, call, relocate

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.data.placement import placements

pytestmark = pytest.mark.slow


def write(store: Store, name: str, ids: list[str]) -> str:
    (store.folder / name).write_text("id\n" + "\n".join(ids) + "\n")
    return name


@pytest.mark.nightly
def test_five_requests_in_a_row_and_the_versions_before_them_retired(sharded):
    ids = load_source(DATA).train.ids
    places = placements(ids, 2, 3)
    drawn = np.random.default_rng(0).permutation(len(ids))
    forgotten = {ids[i] for i in range(len(ids)) if ids[i] in (sharded.folder / "ids.csv").read_text().split()}
    for number, count in enumerate((1, 1, 3, 10), 2):
        wanted = [ids[i] for i in drawn if ids[i] not in forgotten][:count]
        forgotten |= {*wanted}
        uri = f"models:/clf/{number}"
        assert call("request", "--model-uri", uri, "--forget", write(sharded, "wanted.csv", wanted)).code == 0
        done = call("unlearn", "--model-uri", uri, "--method", "exact")
        assert done.code == 0, done.err
        done = call("verify", "--model-uri", f"models:/clf/{number + 1}")
        assert done.code == 0, done.err
    assert len(forgotten) == 16
    before = {one: hashlib.sha256(path.read_bytes()).hexdigest() for one, path in checkpoint_files(sharded).items()}
    for number in range(1, 6):
        done = call("retire", "--model-uri", f"models:/clf/{number}", "--yes", "true")
        assert done.code == 0, done.err
    # What is left is what the last version lists, and no removed one is anywhere under another name.
    left = {*checkpoint_files(sharded)}
    assert left == listed(sharded, "6")
    removed = {digest for one, digest in before.items() if one not in left}
    assert removed
    stored = {hashlib.sha256(path.read_bytes()).hexdigest() for path in sharded.folder.rglob("*") if path.is_file()}
    assert not removed & stored
    # By the placement, each of them is from before the first forgotten sample of its shard, or trained after all.
    at = {sample: (int(places.shard[i]), int(places.slice_[i])) for i, sample in enumerate(ids)}
    runs = [sharded.tags(str(number))["unlearn.run_id"] for number in range(1, 7)]
    gone_by = _forgotten_after(sharded, runs)
    for one in record_of(sharded, "6").checkpoints:
        for sample in gone_by[one.run_id]:
            shard, slice_ = at[sample]
            assert shard != one.shard or one.stage <= slice_, one
    assert set().union(*gone_by.values()) == forgotten
    done = call("verify", "--model-uri", "models:/clf/6", "--recompute", "true")
    assert done.code == 0, done.err
    assert re.search("weights, trained anew *│ same", done.out) and "by 5 unlearnings none has seen" in " ".join(
        done.out.split()
    )
    done = call("locate", "--forget", write(sharded, "all.csv", sorted(forgotten)), "--format", "json")
    places_found = json.loads(done.out)["result"]
    assert places_found["training_checkpoints"] == places_found["unlisted_checkpoints"] == []


def _forgotten_after(store: Store, runs: list[str]) -> dict[str, set[str]]:
    """Run → the samples that were forgotten by later ones, as their requests name them."""
    from mlflow_unlearn.registry import forget_requests

    named = []
    for number in range(2, 7):
        for request_id in store.tags(str(number))["unlearn.request_ids"].split(","):
            named.append({*forget_requests.read_manifest(store.client, request_id).ids})
    return {run_id: set().union(*named[number:]) for number, run_id in enumerate(runs)}


@pytest.fixture(scope="module")
def forge():
    running = Forge({"MLFLOW_UNLEARN_CHECKPOINT_SECONDS": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "200"})
    yield running
    running.close()


@pytest.fixture
def another(sharded_template, tmp_path):
    def copy(name: str) -> Store:
        store = Store(tmp_path / name)
        shutil.copytree(sharded_template.folder, store.folder)
        relocate(store.folder, str(sharded_template.folder))
        return store

    return copy


COMMANDS = {
    "unlearn": ("--model-uri", "models:/clf/2", "--method", "exact", "--forget", "random:10"),
    "train": (*SHARDED, "--name", "new"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_it_goes_on_where_it_was(forge, another, command):
    """The same weights; and neither the cache nor the run that was killed keeps anything of it."""
    store = another("undisturbed")
    ended = forge.run(store, command, *COMMANDS[command])
    assert ended.code == 0, ended.err
    expected = contents(store)
    found_some = 0
    for share in (0.25, 0.5, 0.75):
        store = another(f"killed-{share}")
        before = {*checkpoint_files(store)}
        killed = forge.run(store, command, *COMMANDS[command], die_at=int(ended.writes * share))
        assert killed.code == -signal.SIGKILL, killed.err
        found_some += any((store.folder / "cache").glob("checkpoints/*.safetensors"))
        again = forge.run(store, command, *COMMANDS[command])
        assert again.code == 0, again.err
        assert contents(store) == expected
        assert not leftovers(store)
        name, number = ("new", "1") if command == "train" else ("clf", "3")
        new = {(one.run_id, one.path) for one in record_of(store, number, name).checkpoints}
        assert {*checkpoint_files(store)} == before | new
    assert found_some, "no kill came amid the training"


@pytest.mark.nightly
def test_through_a_server_that_hands_on_artifacts(forge, blank, tmp_path):
    """Listed, read, deleted and missed by HTTP alone."""
    shutil.copy(blank.folder / "mlflow.db", tmp_path / "mlflow.db")
    store = Store(tmp_path)
    with mlflow_server(tmp_path, store.uri) as uri:

        def run(*arguments: str) -> str:
            done = forge.run(store, *arguments, MLFLOW_TRACKING_URI=uri, MLFLOW_EXPERIMENT_NAME="over http")
            assert done.code == 0, done.err
            return done.out

        run("train", *SHARDED, "--name", "clf")
        forget = write(store, "ids.csv", placed_at(0, 1)[:1])
        run("unlearn", "--model-uri", "models:/clf/1", "--method", "exact", "--forget", forget)
        first = {path for path in tmp_path.rglob("*.pt")}
        found = json.loads(run("locate", "--forget", forget, "--format", "json"))["result"]
        [of_run] = found["training_checkpoints"]
        assert of_run["shards"] == {"0": [2]} and found["unlisted_checkpoints"] == []
        run("retire", "--model-uri", "models:/clf/1", "--yes", "true")
        [gone] = first - {path for path in tmp_path.rglob("*.pt")}
        assert gone.name == "shard-0-stage-2.pt" and of_run["run_id"] in str(gone)
        assert "all 4 are there" in run("verify", "--model-uri", "models:/clf/2")
        found = json.loads(run("locate", "--forget", forget, "--format", "json"))["result"]
        assert found["training_checkpoints"] == found["unlisted_checkpoints"] == []
