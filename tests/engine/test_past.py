"""Where a rewinding goes back to, and what may be claimed of it."""

import pytest

from mlflow_unlearn.engine.past import Keep, Past, Point
from mlflow_unlearn.errors import UnlearnError


def point(epochs, seen=7, lost=False, **more):
    def load():
        if lost:
            raise UnlearnError(f"the state of epoch {epochs} was changed")
        return {"epochs": epochs}

    return Point(epochs, f"epoch {epochs}", load, seen, **more)


ANEW = point(0, seen=0, anew=True)
KEPT = [point(3), point(9), point(6)]


def epochs(points):
    return [(one.epochs, one.anew) for one in points]


@pytest.mark.parametrize(
    ("count", "epochs", "start", "after"),
    [
        (4, 15, 0, [3, 6, 9, 12]),
        (14, 15, 0, list(range(1, 15))),
        (4, 15, 9, [10, 11, 12, 13]),
        (4, 15, 13, [14]),
        (4, 15, 14, []),
        (1, 2, 0, [1]),
        (0, 15, 0, []),
    ],
)
def test_what_is_kept_is_spread_evenly_and_never_the_end(count, epochs, start, after):
    found = Keep(count, epochs, lambda state, at: None).after(start)
    assert len(set(found)) == len(found) and all(start < epoch < epochs for epoch in found)
    assert len(found) == len(after) and (start or found == after)


class TestCandidates:
    @pytest.mark.parametrize(
        ("share", "first"), [(0.1, 9), (0.25, 9), (0.26, 6), (0.5, 6), (0.75, 3), (0.76, 0), (1.0, 0)]
    )
    def test_the_last_one_that_leaves_the_share(self, share, first):
        found = Past((*KEPT, ANEW), 12, seed=0).candidates(share)
        assert found[0].epochs == first and found[-1] is ANEW
        assert epochs(found) == sorted(epochs(found), key=lambda each: (-each[0], each[1]))

    def test_one_that_has_seen_nothing_comes_before_all_others(self):
        before = point(0, seen=0)
        assert Past((*KEPT, before, ANEW), 12, seed=0).candidates(0.1)[0] is before

    def test_random_weights_have_seen_nothing_and_are_the_last_resort(self):
        before = point(0)
        assert epochs(Past((before, ANEW, KEPT[0]), 12, seed=0).candidates(1.0)) == [(0, False), (0, True)]


class TestGoingBack:
    def test_what_is_lost_is_refused_with_the_way_out(self):
        past = Past((point(9, lost=True), point(6), ANEW), 12, seed=0)
        with pytest.raises(
            UnlearnError, match="epoch 9 was changed: restore it, or .* fall_back = true .* to epoch 6 ins"
        ):
            past.go_back(0.25, fall_back=False)
        at, state = past.go_back(0.25, fall_back=True)
        assert at.epochs == state["epochs"] == 6

    def test_at_last_random_weights(self):
        past = Past((point(9, lost=True), point(6, lost=True), ANEW), 12, seed=0)
        assert past.go_back(0.25, fall_back=True)[0] is ANEW

    def test_nothing_before_it(self):
        with pytest.raises(
            UnlearnError, match="epoch 9 was changed, and nothing is left before it: use the method retrain"
        ):
            Past((point(9, lost=True),), 12, seed=0).go_back(0.25, fall_back=True)


class TestExactness:
    def claimed(self, at, *differences):
        return Past((at,), 12, 0, differences).exactness(at, 10)

    def test_a_state_that_has_seen_some_is_approximate_whatever_the_machine(self):
        found = self.claimed(point(9), "torch 3 and not 2")
        assert (found.kind, found.steps, found.steps_from_scratch) == ("approximate", 30, 120)
        assert "The last 3 of 12 epochs" in found.covers and "epoch 9, which has seen 7" in found.covers
        assert not any("torch" in sentence for sentence in found.excludes)

    @pytest.mark.parametrize("at", [point(0, seen=0), ANEW])
    def test_one_that_has_not_is_exact_or_exact_up_to_numerics(self, at):
        assert self.claimed(at).kind == "exact" and "retained alone" in self.claimed(at).covers
        other = self.claimed(at, "torch 3 and not 2")
        assert other.kind == "exact up to numerics" and "torch 3 and not 2" in other.excludes[-1]
