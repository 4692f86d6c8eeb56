"""The ladder's settings: cheapest first, within the budget, and what a user names in their place."""

import pytest
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import resnet18

from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.tuning.rungs import Rung, default_rungs, parse_rungs


@pytest.fixture(scope="module")
def models():
    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return {"cnn": resnet18(), "vit": vit, "dense": nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))}


@pytest.fixture
def ladder(models):
    def of(family="cnn", budget=0.5, epochs=25, **sizes):
        return default_rungs(models[family], epochs, **{"forget": 1000, "retain": 9000, **sizes}, budget=budget)

    return of


def test_the_cheapest_come_first_and_lotus_before_all(ladder):
    shares = [rung.share for rung in ladder(budget=10)]
    assert shares == sorted(shares) and [rung.method for rung in ladder()][:2] == ["lotus", "lotus"]


def test_no_rung_alone_goes_beyond_the_budget(ladder):
    assert {rung.method for rung in ladder(budget=0.1)} == {"lotus"}
    assert all(rung.share <= 0.45 for rung in ladder(budget=0.45)) and not ladder(budget=0.001)


def test_retraining_is_a_rung_where_the_budget_has_room_for_it(ladder):
    assert ladder(budget=1.1)[-1].method != "retrain"
    assert ladder(budget=1.2)[-1] == Rung("retrain", {}, 1.0)


def test_what_has_no_kernels_to_transpose_is_perturbed(ladder):
    assert {rung.method for rung in ladder("cnn", budget=1)} == {"lotus", "transpose"}
    for kind in ("vit", "dense"):
        assert {rung.method for rung in ladder(kind, budget=1)} == {"lotus", "perturb"}


def test_lotus_gets_no_more_epochs_than_its_share(ladder):
    few = ladder(epochs=5, forget=3000)[0]
    assert few.params == {"epochs": 1}


def test_methods_and_settings_can_be_named():
    assert parse_rungs("lotus, scrub") == (Rung("lotus"), Rung("scrub"))
    named = parse_rungs('[{"method": "lotus", "params": {"alpha": 4}}, "retrain"]')
    assert named == (Rung("lotus", {"alpha": 4}), Rung("retrain"))


def test_a_file_of_settings(tmp_path):
    path = tmp_path / "rungs.yaml"
    path.write_text("- method: lotus\n  params: {alpha: 4}\n")
    assert parse_rungs(str(path)) == (Rung("lotus", {"alpha": 4}),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lotos", "unknown method 'lotos'"),
        ("[]", "names no setting"),
        ("[1]", "the rung 1 is not a setting"),
        ('[{"params": {}}]', "is not a setting"),
        ('[{"method": "lotus", "params": {"alfa": 4}}]', "did you mean 'alpha'"),
        ("[{", "rungs cannot be parsed"),
        ("missing.yaml", "cannot be read"),
        ('[{"method": "lotus", "epochs": 3}]', "is not a setting"),
    ],
)
def test_what_is_no_setting_is_refused(text, sentence):
    with pytest.raises(UnlearnError, match=sentence):
        parse_rungs(text)
