"""Which checkpoints `exposure` and `locate` name."""

import json

from sharding import checkpoint_files, listed, placed_at
from stores import call
from trainings import EARLY, KEEP, early_ids, train


def asked(*arguments: str, code: int = 0) -> dict:
    done = call(*arguments, "--format", "json")
    assert done.code == code, done.err
    return json.loads(done.out)["result"]


def locate(store, *ids: str, **options) -> dict:
    (store.folder / "wanted.csv").write_text("id\n" + "\n".join(ids) + "\n")
    return asked("locate", "--forget", "wanted.csv", **options)


def counts(places: dict) -> dict[str, int]:
    return {place["uri"]: place["checkpoints"] for place in places["places"]}


def test_exposure_names_runs_shards_and_slices(sharded):
    [(run_id, _)] = listed(sharded, "1") - listed(sharded, "2")
    places = asked("exposure", "--model-uri", "models:/clf/2")
    assert places["training_checkpoints"] == [
        {"run_id": run_id, "shards": {"0": [2]}, "listed_by": ["models:/clf/1"]},
    ]
    assert counts(places) == {"models:/clf/1": 1, "models:/clf/2": 0}
    shown = call("exposure", "--model-uri", "models:/clf/2").out
    assert f"runs:/{run_id}/checkpoints: 1 (after slices of shard 0: 2)" in shown
    assert "1 of its checkpoints have seen them" in " ".join(shown.replace("│", " ").split())


def test_of_one_model_they_are_from_after_epochs(empty_store):
    train(EARLY, *KEEP)
    (empty_store.folder / "wanted.csv").write_text(f"id\n{early_ids(1)[0]}\n")
    on = ("locate", "--forget", "wanted.csv", "--data", EARLY)
    run_id = empty_store.tags("1")["unlearn.run_id"]
    assert f"runs:/{run_id}/checkpoints: 3 (after epochs 2, 4, 6)" in call(*on).out
    assert asked(*on)["training_checkpoints"] == [
        {"run_id": run_id, "shards": {"0": [2, 4, 6]}, "listed_by": ["models:/clf/1"]}
    ]


def test_a_sample_is_in_what_was_kept_after_its_slice(sharded):
    """By both versions: of the first slice in both checkpoints of its shard, of the last one in none."""
    for slice_, expected in enumerate((2, 1, 0)):
        found = locate(sharded, placed_at(1, slice_)[0])
        assert counts(found) == {"models:/clf/1": expected, "models:/clf/2": expected}
    shard_0, shard_1 = placed_at(0, 1)[1], placed_at(1, 0)[0]
    found = locate(sharded, shard_0, shard_1)
    assert counts(found) == {"models:/clf/1": 3, "models:/clf/2": 3}
    by_run = {one["run_id"]: one for one in found["training_checkpoints"]}
    first, second = (sharded.tags(number)["unlearn.run_id"] for number in "12")
    assert by_run[first]["shards"] == {"0": [2], "1": [1, 2]} and by_run[second]["shards"] == {"0": [2]}
    assert by_run[first]["listed_by"] == ["models:/clf/1", "models:/clf/2"]


def test_checkpoints_of_a_version_that_was_deleted(sharded):
    """Its LoggedModel lists them; once that is deleted too, nobody can tell what they have seen."""
    [gone] = listed(sharded, "1") - listed(sharded, "2")
    run_id, forgotten = gone[0], placed_at(0, 1)[0]
    source = str(sharded.client.get_model_version("clf", "1").source)
    sharded.client.delete_model_version("clf", "1")
    found = locate(sharded, forgotten)
    assert found["training_checkpoints"] == [{"run_id": run_id, "shards": {"0": [2]}, "listed_by": [source]}]
    assert found["unlisted_checkpoints"] == []
    sharded.client.delete_logged_model(source.removeprefix("models:/"))
    found = locate(sharded, forgotten)
    assert found["unlisted_checkpoints"] == [f"runs:/{gone[0]}/{gone[1]}"]
    (sharded.folder / "wanted.csv").write_text(f"id\n{forgotten}\n")
    refused = call("locate", "--forget", "wanted.csv", "--fail-on", "unknown")
    assert refused.code == 3 and gone[1] in refused.err


def test_after_a_retirement_none_is_named(sharded):
    assert call("retire", "--model-uri", "models:/clf/1", "--yes", "true").code == 0
    found = locate(sharded, placed_at(0, 1)[0])
    assert found["training_checkpoints"] == found["unlisted_checkpoints"] == []
    assert {*checkpoint_files(sharded)} == listed(sharded, "2")


def test_requests_with_hashed_ids(sharded):
    """Their hash is that of the list of shards, or another one: then every checkpoint may have seen them."""
    (sharded.folder / "ids.csv").write_text(f"id\n{placed_at(1, 1)[0]}\n")
    filed = call("request", "--model-uri", "models:/clf/2", "--forget", "ids.csv", "--hash-ids", "true")
    assert filed.code == 0, filed.err
    [request_id] = sharded.requests("2")
    assert counts(asked("locate", "--forget", f"request:{request_id}"))["models:/clf/2"] == 1
