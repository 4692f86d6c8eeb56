"""Files of runs: stored and read where they lie; end_to_end/test_request_counts.py does so with a real server."""

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from mlflow_unlearn.registry.artifacts import locate, run_file, run_folder, store_text
from mlflow_unlearn.registry.clients import experiment_ids


def test_a_text_is_read_as_it_was_stored(store, tmp_path):
    with mlflow.start_run() as run:
        pass
    store_text(run.info.run_id, "größe\n", "evidence/more/note.txt")
    assert run_file(run.info.run_id, "evidence/more/note.txt", tmp_path).read_bytes() == "größe\n".encode()
    (tmp_path / "folder").mkdir()
    folder = run_folder(run.info.run_id, "evidence", tmp_path / "folder")
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*.txt")] == ["more/note.txt"]
    with pytest.raises((MlflowException, OSError)):
        run_file(run.info.run_id, "evidence/none.txt", tmp_path)


def test_runs_are_located_by_one_search(store, monkeypatch):
    """Also deleted ones; what is not among them is asked for by itself."""
    runs = [store.client.create_run("0").info.run_id for _ in range(3)]
    for run_id in runs:
        store_text(run_id, run_id, "note.txt")  # located by itself
    fresh = [store.client.create_run("0").info.run_id for _ in range(2)]
    store.client.delete_run(fresh[1])
    searches, search = [], type(store.client).search_runs
    monkeypatch.setattr(
        type(store.client),
        "search_runs",
        lambda self, *arguments, **options: searches.append(arguments[1]) or search(self, *arguments, **options),
    )
    for _ in range(2):
        locate(store.client, [*runs, *fresh, "0" * 32], experiment_ids(store.client))
    assert len(searches) == 1, "of a single one that is still unknown nothing is searched"
    assert all(run_id in searches[0] for run_id in fresh) and not any(run_id in searches[0] for run_id in runs)
