"""The climb: it chooses without the test set, and judges by the null's lower quantile."""

from contextlib import suppress
from dataclasses import replace

import mlflow
import pytest
from stores import FORGET, copied
from torch import nn
from torch.utils.data import Dataset

from mlflow_unlearn import config
from mlflow_unlearn.errors import NothingToUnlearn, UnlearnError
from mlflow_unlearn.evidence.candidate import judge_candidate
from mlflow_unlearn.evidence.policy import Membership, Policy, Rule
from mlflow_unlearn.evidence.record import Measured
from mlflow_unlearn.session.recipe import training_recipe
from mlflow_unlearn.session.session import open_session
from mlflow_unlearn.tuning.ladder import Ladder
from mlflow_unlearn.tuning.rungs import Rung

POLICY = Policy(
    name="ours",
    rules=[Rule(metric="acc_test", at_least=0.3)],
    membership=Membership(accept=["indistinguishable", "undecided"], uninformative="accept"),
)


class Unreadable(Dataset):
    """A test set that nothing may look at."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        raise AssertionError("the test set was read")


@pytest.fixture(scope="module")
def opened(template, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    options = config.Unlearn(model_uri="models:/clf/1", forget=FORGET, device="cpu")
    with copied(template, folder / "store") as store, mlflow.start_run():
        session = open_session(store.client, options, folder, progress=False)
        yield session, training_recipe(session, options)


def ladder(session, recipe, *rungs):
    original = session.evaluate_original(force=True)
    session = replace(session, splits=replace(session.splits, test=Unreadable()))
    return Ladder(session, POLICY, rungs, recipe, 2.0, 0, session.teacher(), original)


def test_selection_never_reads_the_test_set(opened):
    climbing = ladder(*opened, Rung("lotus", {"epochs": 1}), Rung("perturb", {"epochs": 4, "amount": 1.0}))
    with pytest.raises(AssertionError, match="was read"):
        climbing.session.splits.test[0]
    with suppress(NothingToUnlearn):  # whether one passes here is luck; that all were measured is not
        climbing.climb()
    assert climbing.attempts and all("mia_advantage" in attempt.metrics for attempt in climbing.attempts)


def test_rungs_that_all_refuse_the_model(opened):
    session, recipe = opened
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(
        UnlearnError, match="none of the rungs can be used here; the first one: transpose.*perturb"
    ) as error:
        ladder(replace(session, module=flat), recipe, Rung("transpose")).climb()
    assert error.value.exit_code == 2


def measured(**values: float) -> Measured:
    return Measured(values=values, not_computed={}, counts={})


@pytest.mark.parametrize(("value", "passed"), [(0.08, True), (0.081, False)])
def test_a_candidate_stays_below_the_lower_quantile(value, passed):
    """Which lies below the one by which a version is judged."""
    models = {
        "original": measured(acc_test=0.9),
        "unlearned": measured(
            acc_test=0.9, mia_advantage=value, mia_advantage_null=0.1, mia_advantage_null_80=0.08, mia_margin_auc=0.6
        ),
    }
    judgement = judge_candidate(models, POLICY)
    assert judgement.passed is passed and judgement.shortfall == pytest.approx(0 if passed else 0.001)
    assert ("mia_advantage (validation set)" in judgement.failures) is not passed


def test_what_no_validation_set_can_decide_is_named():
    models = {name: measured(acc_test=0.9) for name in ("original", "unlearned")}
    [first, second] = judge_candidate(
        models, POLICY.model_copy(update={"rules": [Rule(metric="jsd", at_most=1)]})
    ).checks
    assert first.rule.startswith("jsd") and first.outcome == second.outcome == "not measured"


def test_a_collapsed_candidate_fails_whatever_its_figures():
    collapsed = Measured(values={}, not_computed={"mia_advantage": "collapsed: one class for all"}, counts={})
    judgement = judge_candidate({"original": measured(acc_test=0.9), "unlearned": collapsed}, POLICY)
    assert not judgement.passed
