"""`data`: what a source contains."""

from pathlib import Path

from mlflow_unlearn.data.loaders import load_source


def test_counts_and_digests(cli):
    shown = cli("data", "--data", "digits,train=15%")
    assert shown.code == 0, shown.err
    for word in ("train", "val", "test", "270"):
        assert word in shown.out


def test_ids_are_written(cli, tmp_path):
    written = cli("data", "--data", "digits,train=15%", "--ids", str(tmp_path / "ids.csv"))
    assert written.code == 0, written.err
    header, *rows = Path(tmp_path / "ids.csv").read_text().splitlines()
    source = load_source("digits,train=15%")
    assert header == "id,split,class"
    assert sorted(row.split(",")[0] for row in rows) == sorted(source.train.ids + source.val.ids + source.test.ids)


def test_ids_that_cannot_be_written(cli, tmp_path):
    refused = cli("data", "--data", "digits", "--ids", str(tmp_path / "nowhere" / "ids.csv"))
    assert refused.code == 2
    assert "the list of ids cannot be written to" in refused.err and "non-existent directory" in refused.err
