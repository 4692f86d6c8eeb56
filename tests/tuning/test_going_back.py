"""Whether a real version's training can be gone back on, by what it keeps; and if not, why."""

import json
from dataclasses import replace

import mlflow
import pytest
from sharding import SHARDED, checkpoint_files, placed_at
from stores import DATA

from mlflow_unlearn.data.loaders import load_source
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.registry.versions import TRAINING_TAG
from mlflow_unlearn.session import dry_run
from mlflow_unlearn.tuning.going_back import rewinding, shards_back


def altered(session, *stages, **update):
    """What a session's version lists as checkpoints, those after some stages with other values."""
    kept = session.version.record.checkpoints
    return tuple(one.model_copy(update=update) if one.stage in stages else one for one in kept)


class TestRewinding:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("stages", "expected"),
        [
            ((3, 10, 15), (0.85, False)),
            ((4, 8, 12, 16), (0.8, False)),
            ((18,), (1.0, True)),  # less than the default would run again: it begins at random
        ],
    )
    def test_it_goes_back_to_the_last_checkpoint_that_leaves_enough(self, opened, stages, expected):
        session, _, _ = opened(stages=stages)
        found = rewinding(session)
        assert (found.share, found.exact) == expected
        assert ("from random weights" if found.exact else "on weights that saw them") in found.why

    def test_nothing_is_kept(self, opened):
        with pytest.raises(UnlearnError, match="keeps no checkpoint .* keep_checkpoints=4"):
            rewinding(opened()[0])

    def test_late_samples_alone_are_exact(self, opened):
        session, _, _ = opened(origin="models:/gold/1")
        found = rewinding(session)
        assert (found.share, found.exact) == (1.0, True)
        assert "from models:/gold/1, which had not seen them" in found.why

    @pytest.mark.parametrize(("stages", "share"), [((), 1.0), ((3,), 0.85), ((18,), 1.0)])
    def test_samples_that_the_version_before_saw_are_not(self, opened, stages, share):
        session, _, _ = opened("random:20%,seed=5", origin="models:/gold/1", stages=stages)
        found = rewinding(session)
        assert (found.share, found.exact) == (share, False)

    def test_a_version_before_that_was_made_to_forget_them_may_know_them_still(self, opened):
        """Its list does not have them, and so it says that it has not seen them."""
        session, _, _ = opened(origin="models:/clf/2")
        found = rewinding(session)
        assert found.point.seen == 0 and not found.exact
        assert "evidence and no more: what models:/clf/2 was made to forget, by lotus, may still show in it" in (
            found.why
        )

    def test_a_version_before_that_is_gone_is_said(self, opened):
        session, _, _ = opened(origin="models:/gold/9")
        with pytest.raises(UnlearnError, match="went on from models:/gold/9, which is lost"):
            rewinding(session)

    @pytest.mark.parametrize(
        ("lost", "reason"),
        [({"sha256": "0"}, "was changed since it was written"), ({"run_id": "0" * 32}, "cannot be read")],
    )
    def test_a_lost_checkpoint_is_not_gone_back_to(self, opened, lost, reason):
        session, _, _ = opened(stages=(2, 4, 10))
        session, _, _ = opened(checkpoints=altered(session, 4, **lost))
        with pytest.raises(UnlearnError, match=rf"stage-4.pt .*{reason}.*fall_back = true to go back to .*epoch 2"):
            rewinding(session)
        assert rewinding(session, {"fall_back": True}).share == 0.9

    def test_what_it_does_not_go_back_to_may_be_lost(self, opened):
        session, _, _ = opened(stages=(2, 4, 10))
        session, _, _ = opened(checkpoints=altered(session, 2, 10, sha256="0"))
        assert rewinding(session).share == 0.8

    def test_its_record_was_changed(self, opened):
        session, _, _ = opened(stages=(4,))
        tags = {**session.version.tags, TRAINING_TAG: "0"}
        with pytest.raises(UnlearnError, match="is not what its tags say"):
            rewinding(replace(session, version=replace(session.version, tags=tags)))


def test_one_model_has_no_shards(opened):
    with pytest.raises(UnlearnError, match="this version is one model: `train` with ensemble=8 and slices=4"):
        shards_back(opened()[0])


def planned(cli, version, forget, *more):
    """The ways by kind, and which one is recommended for claim=exact."""
    done = cli(
        *("unlearn", "--model-uri", f"models:/clf/{version}", "--forget", forget, "--plan", "true"),
        *("--claim", "exact", "--format", "json", *more),
    )
    assert done.code == 0, done.err
    result = json.loads(done.out)["result"]
    return {way["kind"]: way for way in result["ways"]}, result["recommended"], result["plan"]["seconds"]


def listed(store, *ids):
    """A file of ids."""
    path = store.folder / "forgotten.csv"
    path.write_text("\n".join(["id", *ids]))
    return str(path)


def unlearned(cli, version, *more):
    done = cli("unlearn", "--model-uri", f"models:/clf/{version}", "--format", "json", *more)
    assert done.code == 0, done.err
    return json.loads(done.out)["result"]["registered"]


def forgotten_by_lotus(store, cli):
    """clf/3, which LoTUS makes of clf/2; its request."""
    done = unlearned(cli, 2, "--forget", listed(store, *placed_at(1, 0)[:5]), "--params", '{"epochs": 1}')
    assert done["uri"] == "models:/clf/3"
    [request] = store.requests("2")
    return request


class TestAnEnsemble:
    """Two shards of three slices; clf/2 has forgotten one sample of clf/1 exactly."""

    @pytest.fixture(autouse=True)
    def once(self, monkeypatch):
        """No figure here depends on how long something takes."""
        monkeypatch.setattr(dry_run, "ENOUGH", 0)

    @pytest.mark.nightly
    @pytest.mark.parametrize("method", ["lotus", "exact", "retrain"])
    def test_its_share_is_that_of_the_samples_however_long_they_take(self, sharded, cli, method):
        """Two epochs of one model are one of each stage, and the last two of a shard's three are trained again."""
        [first, *_] = placed_at(0, 1)
        sizes = [[len(placed_at(shard, slice_)) for slice_ in range(3)] for shard in range(2)]
        sizes[0][1] -= 1
        stages = [[sum(own[: stage + 1]) for stage in range(3)] for own in sizes]
        ways, recommended, seconds = planned(cli, 1, listed(sharded, first), "--method", method)
        share = sum(stages[0][1:]) / sum(map(sum, stages))
        assert ways["shards"]["of_retraining"] == pytest.approx(share, rel=1e-9)
        assert ways["shards"]["seconds"] == pytest.approx(share * ways["retraining"]["seconds"], rel=1e-9)
        assert recommended == "shards"
        by_method = {"exact": "shards", "retrain": "retraining", "lotus": "lotus"}
        assert ways[by_method[method]]["seconds"] == pytest.approx(seconds[method], rel=1e-9)

    @pytest.mark.slow
    def test_a_shard_that_would_be_left_without_a_class(self, sharded, cli):
        train = load_source(DATA).train
        own = {id for slice_ in range(3) for id in placed_at(0, slice_)}
        threes = [id for id, label in zip(train.ids, train.labels, strict=True) if label == 3 and id in own]
        forget = listed(sharded, *threes)
        ways, recommended, _ = planned(cli, 1, forget)
        refusal = (
            "shard 0 of 2 would have no sample of the class '3': retrain without shards, by `train` with --exclude"
        )
        for kind, method in (("shards", "exact"), ("retraining", "retrain"), ("fast_retraining", "retrain")):
            assert ways[kind]["seconds"] is None and ways[kind]["why"].startswith(refusal)
            refused = cli("unlearn", "--model-uri", "models:/clf/1", "--forget", forget, "--method", method)
            assert refused.code == 2 and refusal in " ".join(refused.err.split())
        assert recommended is None and ways["lotus"]["seconds"] > 0

    @pytest.mark.slow
    def test_checkpoints_that_are_needed_and_others(self, sharded, cli):
        forget, files = listed(sharded, placed_at(0, 1)[0]), checkpoint_files(sharded)
        [needed] = [path for (_, name), path in files.items() if name.endswith("shard-0-stage-1.pt")]
        for path in set(files.values()) - {needed}:
            path.unlink()
        assert planned(cli, 1, forget)[1] == "shards"
        content = needed.read_bytes()
        needed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        ways, recommended, _ = planned(cli, 1, forget)
        assert ways["shards"]["command"] is None and recommended == "retraining"
        assert "shard-0-stage-1.pt" in ways["shards"]["why"] and "was changed since" in ways["shards"]["why"]
        assert "restore it, or go back further with params" in ways["shards"]["why"]
        needed.unlink()
        ways, recommended, _ = planned(cli, 1, forget)
        assert "cannot be read" in ways["shards"]["why"] and recommended == "retraining"

    @pytest.mark.slow
    def test_a_ladder_is_without_what_is_refused(self, sharded, cli):
        forget = listed(sharded, placed_at(0, 1)[0])
        for path in checkpoint_files(sharded).values():
            path.unlink()
        until = ("--until", "pass", "--rungs")
        ways, _, _ = planned(cli, 1, forget, *until, "exact,rewind")
        assert ways["until_pass"]["seconds"] is None
        assert ways["until_pass"]["why"].startswith(
            "no rung can be used: the checkpoint checkpoints/shard-0-stage-1.pt"
        )
        ways, _, _ = planned(cli, 1, forget, *until, "exact,transpose")
        assert ways["until_pass"]["name"] == "until pass, up to transpose"

    @pytest.mark.slow
    def test_its_list_of_shards_was_changed(self, sharded, cli):
        [first, *_] = placed_at(0, 1)
        for table in sharded.folder.rglob("extra_files/shards.csv"):
            table.write_text(table.read_text().replace(",0,", ",1,"))
        ways, recommended, _ = planned(cli, 1, listed(sharded, first))
        assert "is not the one that their hash gives" in ways["shards"]["why"] and ways["shards"]["seconds"] is None
        assert recommended == "retraining"

    @pytest.mark.nightly
    def test_another_method_has_ended_it(self, sharded, cli):
        """The version before that is named; where all of these are gone, the recipe is still recorded."""
        request = forgotten_by_lotus(sharded, cli)
        [first] = sharded.requests("1")
        forget = listed(sharded, placed_at(1, 2)[3])
        changed = "lotus has changed the weights of this ensemble"
        there = "is from before that: file these samples and those of"
        ways, recommended, _ = planned(cli, 3, forget)
        assert ways["shards"]["seconds"] is None and recommended == "retraining"
        assert ways["shards"]["why"] == (
            f"{changed}; models:/clf/2 {there} request {request} there, and use --method exact"
        )
        sharded.client.delete_model_version("clf", "2")
        why = planned(cli, 3, forget)[0]["shards"]["why"]
        assert why.startswith(f"{changed}; models:/clf/1 {there} requests {request}, {first} there")
        sharded.client.delete_model_version("clf", "1")
        ways, recommended, _ = planned(cli, 3, forget)
        assert ways["shards"]["why"].startswith(f"{changed}, and ") and recommended == "retraining"
        assert ways["retraining"]["name"] == "retraining, recorded recipe" and ways["retraining"]["claim"] == "exact"

    @pytest.mark.nightly
    def test_what_is_said_then_can_be_done(self, sharded, cli):
        request, forget = forgotten_by_lotus(sharded, cli), listed(sharded, placed_at(1, 2)[3])
        for spec in (forget, f"request:{request}"):
            filed = cli("request", "--model-uri", "models:/clf/2", "--forget", spec)
            assert filed.code == 0, filed.err
        assert unlearned(cli, 2, "--method", "exact")["uri"] == "models:/clf/4"
        exact = mlflow.artifacts.load_dict("models:/clf/4/evidence/evidence.json")
        assert exact["exactness"]["kind"] == "exact" and exact["data"]["forget"]["samples"] == 6

    @pytest.mark.nightly
    def test_frozen_layers_that_were_changed_are_not_gone_back_on(self, empty_store, cli):
        """Retraining then begins with all of them at random, which is not how the version was trained."""
        trained = cli("train", *SHARDED, "--prefix", "3", "--name", "clf")
        assert trained.code == 0, trained.err
        own = listed(empty_store, placed_at(1, 2)[3])
        assert planned(cli, 1, own)[0]["retraining"]["claim"] == "exact"
        forget = listed(empty_store, *placed_at(1, 0)[:5])
        unlearned(cli, 1, "--forget", forget, "--method", "finetune", "--params", '{"epochs": 1}', "--force", "true")
        ways, recommended, _ = planned(cli, 2, listed(empty_store, placed_at(1, 2)[3]))
        assert ways["retraining"]["claim"] == "unseen" and recommended is None
        assert "another method has changed the frozen layers" in ways["retraining"]["why"]
        assert ways["shards"]["why"].startswith("finetune has changed the weights of this ensemble; models:/clf/1 is")
