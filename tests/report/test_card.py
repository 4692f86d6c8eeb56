"""The model card and the description of a version, from the record alone."""

import pytest
import records

from mlflow_unlearn.evidence.record import Exactness, Matched
from mlflow_unlearn.report.card import metrics_table, model_card
from mlflow_unlearn.report.description import describe


@pytest.fixture(scope="module", params=["one", "sequence"])
def record(request):
    return records.evidence() if request.param == "one" else records.sequence()


def test_the_card_names_every_request_setting_and_set(record):
    card = model_card(record)
    assert all(f"- `{request.id}`: {request.samples} samples" in card for request in record.requests)
    for name, value in record.provenance.params.items():
        assert f"| {name.replace('_', '&#95;')} | {value} |" in card
    assert f"{record.data.retain.samples} samples, SHA-256 {record.data.retain.sha256}" in card
    assert card.endswith("\n") and "None" not in card


def test_frozen_layers_the_study_and_an_incomplete_class_are_in_both():
    record = records.sequence()
    for text in (describe(record), model_card(record)):
        assert "The layers before `layer3` were frozen" in text
        assert text.index("Incomplete: a class is not forgotten") < text.index("Membership: ")
    card = model_card(record)
    assert "| study | digits-lotus |" in card and "| trial | 17 |" in card
    assert "| n&#95;trials | 20 |" in card and card.count("| study |") == 1


def test_a_collapse_stands_first_and_in_place_of_the_membership_test():
    record = records.collapsed()
    for text in (describe(record), model_card(record)):
        assert text.index("**The model has collapsed, and its metrics are void** (collapsed: acc_retain 0.1000") < (
            text.index("Membership: collapsed: the model no longer tells the retained classes apart")
        )
    assert "collapsed" not in describe(records.evidence())


def test_a_value_that_was_not_computed_is_not_a_number():
    rows = {line.split(" | ")[0]: line for line in metrics_table(records.evidence(gold=False)).splitlines()}
    assert "| jsd" not in rows
    assert rows["| acc_forget"] == "| acc_forget | 0.9976 | 0.9412 |"


def test_what_a_user_typed_is_text_and_escaped_once():
    asked = records.request("r", reason="<b>*now*</b> & then", requester="me_too")
    card = model_card(records.evidence(requests=[asked], request_ids=["r"]))
    assert "&#60;b&#62;&#42;now&#42;&#60;/b&#62; &#38; then" in card and "me&#95;too" in card


def test_the_reading_is_that_of_the_record_and_in_old_ones_the_models_own():
    record = records.evidence(reading="uninformative")
    for text in (describe(record), model_card(record)):
        assert "Membership: uninformative: the original already passed" in text
    for text in (describe(records.evidence()), model_card(records.evidence())):
        assert "Membership: indistinguishable: forgotten and unseen samples look alike" in text


def test_what_a_spec_named_and_was_not_forgotten():
    matched = Matched(trained=6, untrained=1, val=2, test=0, nowhere=3)
    asked = [records.request("a", matched=matched), records.request("b", matched=matched.model_copy(update={"val": 0}))]
    asked.append(records.request("c", matched=Matched(trained=6, untrained=0, val=0, test=0, nowhere=0)))
    lines = [line for line in model_card(records.evidence(requests=asked)).splitlines() if line.startswith("- `")][:3]
    others = "1 in the training split that it is not trained on, 2 in the validation split, 3 in no split"
    assert lines[0].endswith(f"; also named, and not forgotten: {others}")
    assert "validation" not in lines[1] and "also named" not in lines[2]


def test_the_card_says_which_code_loading_ran():
    """Records of earlier releases name pickles alone, and their cards are made again word for word."""
    record, earlier = records.evidence(), records.sequence()
    assert "ran code" not in model_card(record)
    assert model_card(earlier).endswith("The source version is a pickle: loading it ran the code that it carries.\n")
    ran = {"loading_ran_code": True, "code": ["its model is a pickle", "its transform is python:<b>:f"]}
    card = model_card(record.model_copy(update={"source": record.source.model_copy(update=ran)}))
    told = "Loading the source version ran code: its model is a pickle; its transform is python:&#60;b&#62;:f."
    assert card.endswith(f"{told}\n")


def test_what_a_claim_does_not_cover_is_a_list_of_its_own():
    record = records.exact()
    for text in (describe(record), model_card(record)):
        first, second = records.EXCLUDED
        escaped = second.replace("<b>w.pt</b>", "&#60;b&#62;w.pt&#60;/b&#62;")
        assert f"**Exact:** {records.COVERS}\n\n**Not covered:**\n\n- {first}\n- {escaped}\n\n" in text
    assert "Not covered" not in model_card(records.evidence())
    ended = Exactness(covers="The source version could be unlearned exactly.")
    assert "Not covered" not in model_card(records.evidence(exactness=ended))


def test_the_card_says_what_was_trained_again():
    card = model_card(records.exact())
    assert "| trained again | 2 of 4 shards: shard 1 from slice 3, shard 3 from its start |" in card
    assert "| as in the source | 2 of them, by the digests of their weights |" in card
    assert "| steps | 77 of 1,827 from scratch &#40;4.2%&#41; |\n| checkpoints kept | 5 |" in card
    assert "trained again" not in describe(records.exact())
    assert "checkpoints kept" not in model_card(records.evidence())
    rewound = Exactness(covers="The last 2 epochs were run again.", steps=16, steps_from_scratch=64, checkpoints=3)
    card = model_card(records.evidence(exactness=rewound))
    assert "| steps | 16 of 64 from scratch &#40;25.0%&#41; |\n| checkpoints kept | 3 |" in card and "shard" not in card
