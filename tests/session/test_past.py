"""What an opened version keeps of its training."""

from dataclasses import replace

import pytest
import torch
from stores import copied
from trainings import EARLY, KEEP, LATER, late_ids, listed, train

from mlflow_unlearn import config
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.data.manifest import Manifest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.errors import Refused, UnlearnError
from mlflow_unlearn.evidence.provenance import Provenance
from mlflow_unlearn.registry import tracking
from mlflow_unlearn.registry.versions import TRAINING_TAG, WEIGHTS_TAG, open_version
from mlflow_unlearn.session.past import check_prefix, keep_of, own_training, trained_as, unmet, usable
from mlflow_unlearn.session.session import open_session

REWOUND = Provenance(method="rewind", params={}, seed=0)


@pytest.fixture(scope="module")
def later(blank, tmp_path_factory):
    """clf/2, which went on from clf/1, opened to forget ten samples that came later."""
    folder = tmp_path_factory.mktemp("later")
    with copied(blank, folder / "store"):
        train(EARLY)
        train(LATER, "--from", "models:/clf/1", *KEEP, "--augment", "crop-flip")
        options = config.Unlearn(model_uri="models:/clf/2", forget=listed(folder, late_ids(10)), device="cpu")
        with tracking.run("unlearn", options):
            yield open_session(tracking.client(), options, folder, progress=False)


def with_record(session, **changes):
    record = session.version.record.model_copy(update=changes)
    tags = {**session.version.tags, TRAINING_TAG: record.training_sha256}
    return replace(session, version=replace(session.version, record=record, tags=tags, model_id=None, name=None))


class TestNeeds:
    def test_a_version_without(self, opened):
        assert unmet("rewind", opened.version) == (
            "rewind cannot be used, since models:/clf/1 keeps no checkpoints of its training: `train` does with "
            "keep_checkpoints= or from="
        )
        with pytest.raises(UnlearnError, match="models:/clf/1 keeps no checkpoints of its training"):
            own_training(opened)

    def test_one_that_was_named_is_refused_and_of_all_it_is_left_out(self, opened, capsys):
        with pytest.raises(UnlearnError, match="rewind cannot be used, since models:/clf/1 keeps no checkpoints"):
            usable(["lotus", "rewind"], opened.version, named=True)
        assert usable(["lotus", "rewind"], opened.version, named=False) == ["lotus"]
        assert "Note: rewind cannot be used, since" in capsys.readouterr().err

    @pytest.mark.slow
    def test_checkpoints_or_a_version_before_are_enough(self, later):
        assert usable(["lotus", "rewind"], later.version, named=True) == ["lotus", "rewind"]
        assert unmet("rewind", with_record(later, checkpoints=()).version) is None
        assert unmet("rewind", with_record(later, checkpoints=(), origin=None).version) is not None

    def test_a_prefix_goes_with_other_methods(self):
        check_prefix("lotus", "6"), check_prefix("rewind", "none"), check_prefix("rewind", None)
        for method in ("rewind", "exact"):
            with pytest.raises(UnlearnError, match=f"{method} runs the training of all layers again: use prefix=none"):
                check_prefix(method, "auto")


class TestOwnTraining:
    @pytest.mark.slow
    def test_its_states_from_the_last_one_on(self, later):
        past = later.own_training.past
        assert [(p.name, p.epochs, p.seen, p.anew) for p in past.points] == [
            *((f"the checkpoint after epoch {epoch}", epoch, 10, False) for epoch in (2, 4, 6)),
            ("models:/clf/1", 0, 0, False),
            ("random weights and all epochs", 0, 0, True),
        ]
        assert (past.epochs, past.seed, past.differences) == (8, 5, ())

    def test_it_is_trained_on_as_it_was(self, later):
        found = later.own_training.splits(later.splits)
        assert isinstance(found.retain, Augmented) and len(found.retain) == len(later.retain)
        assert found.forget is later.splits.forget
        record = later.version.record
        new = with_record(later, origin=record.origin.model_copy(update={"trained_on": "new"}))
        assert len(own_training(new).splits(later.splits).retain) == record.origin.samples - 10
        assert not any(point.anew for point in own_training(new).past.points)

    def test_where_nobody_can_tell_what_came_later(self, later):
        origin = later.version.record.origin.model_copy(update={"uri": "models:/clf/9", "trained_on": "new"})
        with pytest.raises(
            UnlearnError, match="went on from models:/clf/9, which is lost .*: restore it, or use the method r"
        ):
            own_training(with_record(later, origin=origin))

    def test_it_computes_with_as_many_threads_and_puts_them_back(self, later):
        here = torch.get_num_threads()
        other = later.version.record.machine.model_copy(update={"threads": here + 1})
        with own_training(with_record(later, machine=other)).computing():
            assert torch.get_num_threads() == here + 1
        assert torch.get_num_threads() == here

    def test_another_torch(self, later):
        other = later.version.record.machine.model_copy(update={"torch": "1.0"})
        past = own_training(with_record(later, machine=other)).past
        found = past.exactness(past.go_back(0.5, fall_back=False)[0], 10)
        assert found.kind == "exact up to numerics"
        assert f"which had torch 1.0 and not {torch.__version__}." in found.excludes[-1]

    def test_other_weights_in_the_place_of_the_version_before(self, later):
        origin = later.version.record.origin.model_copy(update={"weights_sha256": 64 * "0"})
        with pytest.raises(
            UnlearnError, match="the weights of models:/clf/1 were changed since the training went on fr"
        ):
            own_training(with_record(later, origin=origin)).past.go_back(0.5, fall_back=False)

    def test_what_runs_code_is_not_loaded_where_that_is_forbidden(self, later):
        """`toy:trainable` is a function of the user's own."""
        strict = replace(later, read=later.read.model_copy(update={"no_code": True}))
        with pytest.raises(UnlearnError, match="loading models:/clf/1 would run code") as caught:
            own_training(strict).past.go_back(0.5, fall_back=False)
        assert isinstance(caught.value.__cause__, Refused)

    def test_what_was_forgotten_since_is_seen_too(self, later):
        """The version before knows all early samples: going back there would bring them back."""
        early = replace(later, forget=later.retain[:3], retain=later.retain[3:])
        [before] = [p for p in own_training(early).past.points if p.name == "models:/clf/1"]
        assert before.seen == 3 and before.origin is None

    def test_what_has_left_the_data_source_is_seen_too(self, later):
        """It is among neither set, and the version before knows it."""
        shrunk = replace(later, retain=later.retain[3:])
        [before] = [p for p in own_training(shrunk).past.points if p.name == "models:/clf/1"]
        assert before.seen == 3

    @pytest.mark.parametrize("changed", ["record", "weights", "list"])
    def test_what_was_changed_is_not_gone_back_on(self, later, changed):
        version, tags = later.version, dict(later.version.tags)
        if changed == "record":
            machine = version.record.machine.model_copy(update={"torch": "1.0"})
            version = replace(version, record=version.record.model_copy(update={"machine": machine}))
        elif changed == "weights":
            version = replace(version, tags={**tags, WEIGHTS_TAG: 64 * "0"})
        else:
            listed = version.record.trained_on.model_copy(update={"manifest_sha256": 64 * "0"})
            version = with_record(later, trained_on=listed).version
        with pytest.raises(UnlearnError, match="what models:/clf/2 records of its training, or its weights, is not"):
            own_training(replace(later, version=version))

    def test_an_edited_list_of_the_version_before_makes_its_claim_doubtful(self, later):
        """Early samples would count as late ones."""
        origin = later.version.record.origin
        for added, expected in (
            (origin.added_sha256, None),
            (64 * "0", "it is unknown which samples came after models:/clf/1"),
        ):
            session = with_record(later, origin=origin.model_copy(update={"added_sha256": added}))
            [before] = [p for p in own_training(session).past.points if p.name == "models:/clf/1"]
            assert before.doubt == expected or before.doubt.lower().startswith(expected)
            claim = own_training(session).past.exactness(before, 1)
            assert claim.kind == ("exact" if expected is None else "approximate")
            assert (before.doubt in claim.excludes) == (expected is not None)

    def test_a_list_that_somebody_has_recorded_is_no_list_of_a_training(self, later, monkeypatch):
        def recorded(*where):
            return replace(open_version(*where), recorded=Manifest(()))

        monkeypatch.setattr("mlflow_unlearn.session.past.open_version", recorded)
        [before] = [p for p in own_training(later).past.points if p.name == "models:/clf/1"]
        assert "What models:/clf/1 was trained on is what `manifest` has recorded" in before.doubt

    def test_what_came_from_a_version_that_was_made_to_forget_is_doubtful(self, later):
        origin = later.version.record.origin.model_copy(update={"forgotten": ["a"]})
        [before] = [p for p in own_training(with_record(later, origin=origin)).past.points if p.origin is not None]
        assert before.doubt == "What models:/clf/1 came from was made to forget samples, which may still show in it."


def test_what_a_new_version_keeps_and_says(later, opened):
    checkpoint = Checkpoint("unlearn", "run", {})
    keep = keep_of(later, "rewind", "run", checkpoint)
    assert (keep.count, keep.epochs) == (3, 8)
    assert keep_of(later, "lotus", "run", checkpoint) is None
    assert keep_of(opened, "rewind", "run", checkpoint) is None
    assert trained_as(later, REWOUND).augment == "crop-flip"
    assert trained_as(later, REWOUND.model_copy(update={"method": "lotus"})).augment is None
