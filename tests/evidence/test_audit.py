"""What an audit decides: never a pass without power, nor with a control that fails."""

import pytest

from mlflow_unlearn.evidence.audit import DetectionRecord, RelearnRecord, decide, recorded
from mlflow_unlearn.metrics.attacks.detection import Detection, Tail


def attack(p, corrected=None, low=0.45, high=0.55):
    return DetectionRecord(
        **{"n_forget": 50, "n_unseen": 500, "auc": (low + high) / 2, "auc_low": low, "auc_high": high},
        **{"advantage": 0.1, "p_value": p, "corrected": p if corrected is None else corrected, "tail": None},
    )


SEEN, UNSEEN = {"rmia": attack(0.001, low=0.6, high=0.7)}, {"rmia": attack(0.4)}


def test_what_has_forgotten():
    word, why = decide({"audited": UNSEEN, "original": SEEN, "gold 1": UNSEEN, "gold 2": UNSEEN})
    assert (word, why) == ("not told apart", "by none of rmia")


@pytest.mark.parametrize(
    ("low", "high", "side"), [(0.6, 0.7, "residual"), (0.3, 0.4, "over-forgotten"), (0.4, 0.6, "spread")]
)
def test_what_has_not(low, high, side):
    found = {"rmia": attack(0.001, low=low, high=high), "margin": attack(0.5)}
    word, why = decide({"audited": found, "original": SEEN, "gold 1": UNSEEN, "gold 2": UNSEEN})
    assert word == "told apart"
    assert why == f"rmia: {side}, AUC {(low + high) / 2:.3f}, p 0.001; no gold control of margin"


def test_without_power_nothing_passes():
    word, why = decide({"audited": UNSEEN, "original": UNSEEN, "gold 1": UNSEEN, "gold 2": UNSEEN})
    assert (word, why) == ("not decided", "the original shows no memory of these samples to these attacks")


def test_power_is_of_what_was_tried_and_of_memory():
    """An attack that the audited model escaped, or that sees the original on the wrong side, proves nothing."""
    golds = {"gold 1": UNSEEN, "gold 2": UNSEEN}
    for audited, original in (
        ({"margin": attack(0.5)}, SEEN | {"margin": attack(0.5)}),
        (UNSEEN, {"rmia": attack(0.001, low=0.3, high=0.4)}),
        ({}, SEEN),
        ({}, {}),
    ):
        assert decide({"audited": audited, "original": original, **golds})[0] == "not decided"


@pytest.mark.parametrize("audited", [SEEN, UNSEEN])
def test_where_a_retrained_model_is_told_apart_nothing_is_decided(audited):
    word, why = decide({"audited": audited, "original": SEEN, "gold 1": UNSEEN, "gold 2": SEEN})
    assert word == "not decided" and "gold 2 by rmia" in why and "more than training" in why


def test_the_chances_of_all_golds_are_corrected_together():
    """Each by itself would fail; of forty that is what chance gives."""
    golds = {f"gold {n}": {"rmia": attack(0.03 if n == 1 else 0.5)} for n in range(1, 41)}
    assert decide({"audited": UNSEEN, "original": SEEN, **golds})[0] == "not told apart"
    assert decide({"audited": UNSEEN, "original": SEEN, "gold 1": golds["gold 1"]})[0] == "not decided"


def test_many_golds_that_all_stand_out_are_seen():
    """Though no chance of a permutation is small enough to be corrected for all of them."""
    shifted = {f"attack {n}": attack(1 / 1001, 6 / 1001, low=0.1, high=0.2) for n in range(6)}
    golds = {f"gold {n}": shifted for n in range(1, 10)}
    audited = {name: attack(0.5) for name in shifted}
    word, why = decide(
        {"audited": audited, "original": {name: attack(0.001, low=0.6, high=0.7) for name in shifted}, **golds}
    )
    assert word == "not decided" and "gold 9" in why


def test_without_a_control_it_is_said():
    assert decide({"audited": UNSEEN, "original": SEEN})[1] == "by none of rmia; no gold control of rmia"
    assert decide({"audited": SEEN, "original": SEEN})[1].endswith("; no gold control of rmia")


def test_a_cheat_that_is_not_caught_decides_nothing():
    models = {"audited": UNSEEN, "original": SEEN, "gold 1": UNSEEN, "gold 2": UNSEEN}
    word, why = decide({**models, "known cheat": UNSEEN})
    assert word == "not decided" and "a known cheat" in why
    assert decide({**models, "known cheat": SEEN})[0] == "not told apart"
    assert decide({**models, "known cheat": UNSEEN}, relearning={"known cheat": again(0.3, 0.002)})[0] == (
        "not told apart"
    ), "relearning catches it"


def again(ratio: float, p: float) -> RelearnRecord:
    return RelearnRecord(forget=[1.0], unseen=[2.0], ratio=ratio, p_value=p, censored=0.0)


@pytest.mark.parametrize(("ratio", "how"), [(0.3, "faster"), (2.0, "slower")])
def test_who_learns_them_again_at_another_speed_is_told_apart(ratio, how):
    models = {"audited": UNSEEN, "original": SEEN, "gold 1": UNSEEN, "gold 2": UNSEEN}
    even, own = again(1.0, 0.9), again(ratio, 0.002)
    relearning = {"audited": own, "original": again(0.1, 0.002), "gold 1": even, "gold 2": even}
    word, why = decide(models, relearning=relearning)
    figures = f"ratio {ratio:.2f}, p 0.002"
    assert word == "told apart"
    assert why == f"relearning: forgotten samples are learned again {how} than unseen ones, {figures}"
    word, why = decide(models, relearning={**relearning, "audited": even, "gold 2": own})
    assert word == "not decided" and "gold 2 by relearning" in why


def test_relearning_may_be_the_only_power():
    blind = {"audited": UNSEEN, "original": UNSEEN}
    for before, word in ((again(0.1, 0.002), "not told apart"), (again(3.0, 0.002), "not decided")):
        assert decide(blind, relearning={"audited": again(1.0, 0.9), "original": before})[0] == word


def test_flat_outputs_decide_nothing():
    """Half of the samples lie within a two hundredth of what they do under the original."""
    own = {"margin": attack(0.4).model_copy(update={"half_width": 0.015}), **UNSEEN}
    before = {"margin": attack(0.4).model_copy(update={"half_width": 3.0}), **SEEN}
    word, why = decide({"audited": own, "original": before})
    assert word == "not decided" and "lie within 0.015, under the original within 3" in why
    assert decide({"audited": own, "original": own | SEEN})[0] == "not told apart", "so were the original's"
    caught = {"audited": again(0.1, 0.002), "original": again(0.1, 0.002)}
    assert decide({"audited": own, "original": before}, relearning=caught)[0] == "told apart", "what is seen counts"


def test_relearning_that_ends_nowhere_is_no_test():
    """A version that learns nothing is neither cleared by it nor is the original's memory its power."""
    stuck, before = again(1.0, 1.0).model_copy(update={"censored": 1.0}), again(0.1, 0.002)
    blind = {"audited": UNSEEN, "original": UNSEEN}
    assert decide(blind, relearning={"audited": stuck, "original": before})[0] == "not decided"
    word, why = decide({"audited": UNSEEN, "original": SEEN}, relearning={"audited": stuck, "original": before})
    assert (word, why) == ("not told apart", "by none of rmia; no gold control of rmia")


def test_what_was_asked_for_and_not_measured_is_no_pass():
    models = {"audited": UNSEEN, "original": SEEN}
    word, why = decide(models, unmeasured="it cannot be trained")
    assert (word, why) == ("not decided", "relearning was asked for and not measured: it cannot be trained")
    assert decide({**models, "audited": SEEN}, unmeasured="it cannot be trained")[0] == "told apart"


def test_the_attacks_on_one_model_are_corrected_together():
    values = {"n_forget": 9, "n_unseen": 9, "auc": 0.5, "auc_low": 0.4, "auc_high": 0.6, "advantage": 0.1}
    made = {
        name: Detection(**values, p_value=p, tail=Tail(0.1, 0.0, 0.2), curve=())
        for name, p in (("a", 0.02), ("b", 0.04))
    }
    found = recorded(made)
    assert [one.corrected for one in found.values()] == [0.04, 0.04]
    assert found["a"].tail.tpr == 0.1 and found["a"].flagged
    assert DetectionRecord.model_validate_json(found["a"].model_dump_json()) == found["a"]
