"""What an ensemble's version keeps and can no longer be relied on: each sentence names it, and a way out that works."""

import tempfile
from pathlib import Path

import pytest
from sharding import SHARDED
from stores import call, digits_folder


def shards_file(store) -> Path:
    """The list beside the weights of clf/1."""
    model_id = str(store.client.get_model_version("clf", "1").source).removeprefix("models:/")
    folder = store.client.get_logged_model(model_id).artifact_location.removeprefix("file://")
    return Path(folder) / "extra_files" / "shards.csv"


def unlearn(method: str, *more: object):
    return call("unlearn", "--model-uri", "models:/clf/1", "--forget", "random:2,seed=3", "--method", method, *more)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "it is missing"), ("", "it is not a table of id, shard and slice")],
)
def test_a_list_of_shards_that_is_lost(sharded, content, why):
    file = shards_file(sharded)
    file.unlink() if content is None else file.write_text(content)
    done = unlearn("exact")
    sentence = " ".join(done.err.split())
    assert done.code == 2 and sharded.versions() == ["1", "2"], done.err
    assert tempfile.gettempdir() not in sentence
    named = "extra_files/shards.csv of models:/clf/1, which lists where samples were trained"
    assert f"{named}, cannot be read ({why}): restore the file, or use" in sentence
    assert "the method retrain, which trains all shards anew" in sentence
    done = unlearn("retrain")
    assert done.code == 0, done.err
    [number] = {*sharded.versions()} - {"1", "2"}
    exclude = sharded.client.get_model_version("clf", number).tags["unlearn.request_ids"]
    assert call("train", *SHARDED, "--name", "gold", "--exclude", exclude).code == 0
    assert sharded.tags(number)["unlearn.weights_sha256"] == sharded.tags("1", "gold")["unlearn.weights_sha256"]


def test_one_row_of_it_that_was_changed(sharded):
    file = shards_file(sharded)
    lines = file.read_text().splitlines()
    row, _, slice_ = lines[-1].rpartition(",")
    file.write_text("\n".join([*lines[:-1], f"{row},{(int(slice_) + 1) % 3}"]))
    done = unlearn("exact")
    assert done.code == 2 and "of 1 samples the shard or slice in extra_files/shards.csv of models:/clf/1" in done.err


@pytest.mark.slow
def test_groups_that_the_source_no_longer_has(empty_store, tmp_path):
    """Retraining would not know either where a sample belongs."""
    digits_folder(tmp_path / "images", train=400, held_out=100)
    rows = [(f"images/{path.relative_to(tmp_path / 'images')}", path.parent.name, path.parent.parent.name)
            for path in sorted((tmp_path / "images").rglob("*.png"))]  # fmt: skip
    table = tmp_path / "list.csv"

    def write(*, subjects: bool) -> None:
        lines = [",".join([*row, *([f"s{number % 12}"] if subjects else [])]) for number, row in enumerate(rows)]
        table.write_text("\n".join(["path,label,split" + ",subject" * subjects, *lines]))

    write(subjects=True)
    train = (
        "train",
        "--data",
        f"csv:{table}",
        "--architecture",
        "toy:trainable",
        "--epochs",
        "2",
        "--transform",
        "none",
    )
    shards = ("--ensemble", "2", "--slices", "2")
    done = call(*train, *shards, "--group", "subject", "--name", "clf")
    assert done.code == 0, done.err
    write(subjects=False)
    for method in ("exact", "retrain"):
        done = unlearn(method)
        assert done.code == 2 and empty_store.versions() == ["1"], done.err
        assert (
            f"'csv:{table}' no longer has the column 'subject', by which models:/clf/1 has spread its samples over "
            "shards: restore the column, or train anew without the samples, by `train` with --exclude"
        ) in " ".join(done.err.split())
    assert call(*train, *shards, "--name", "anew", "--exclude", "random:2,seed=3").code == 0
    none = call(*train, *shards, "--group", "subject", "--name", "x")
    assert none.code == 2 and "to shard by: it has no group columns, leave --group out" in none.err
