"""The ways of a real version: what each takes and may claim, and which one is recommended.

LoTUS and retraining are given seconds by hand, since a figure that was measured would differ from run to run.
"""

import json
import shlex
from dataclasses import replace

import mlflow
import pytest
from stores import FORGET

from mlflow_unlearn.session.recipe import Recipe
from mlflow_unlearn.tuning.rungs import Rung, default_rungs
from mlflow_unlearn.tuning.ways import Comparison, Way, on_retraining, recommend, show


def compared(session, recipe, options, budget=0.5, lotus=1.0, exact=8.0):
    """The ways, where retraining takes 100 seconds."""
    epochs = recipe.params.get("epochs", 15)
    sizes = {"forget": len(session.forget), "retain": len(session.retain)}
    rungs = default_rungs(session.module, epochs, budget=budget, **sizes)
    return Comparison(session, options, recipe, {"lotus": lotus, "retrain": 100.0, "exact": exact}).ways(rungs)


def by_kind(ways):
    return {way.kind: way for way in ways}


class TestRecommended:
    """The hand-made cases: version, claim, and what is the cheapest that meets it."""

    @pytest.mark.parametrize(
        ("recorded", "recipe", "claim", "expected"),
        [
            pytest.param({}, {}, "approximate", ("fast_retraining", 35), id="plain: as near as the ladder, and more"),
            pytest.param({}, {"epochs": 8}, "approximate", ("until_pass", 39), id="trained so short that fast is slow"),
            pytest.param({}, {}, "exact", ("retraining", 100), id="plain, and it has to be exact"),
            pytest.param({"stages": (4, 10, 15)}, {}, "approximate", ("fast_retraining", 35), id="kept states"),
            pytest.param({"stages": (4, 10, 15)}, {}, "exact", ("retraining", 100), id="they saw the samples"),
            pytest.param({"origin": "models:/gold/1"}, {}, "exact", ("rewind", 100), id="late samples"),
            pytest.param({}, None, "exact", None, id="no recorded recipe"),
        ],
    )
    def test_is_the_cheapest_that_meets_the_claim(self, opened, recorded, recipe, claim, expected):
        session, own, options = opened(**recorded)
        own = replace(own, params={**own.params, **recipe} if recipe is not None else {})
        ways = compared(session, own, options)
        chosen = recommend(ways, claim)
        assert expected == (None if chosen is None else (chosen.kind, pytest.approx(chosen.seconds, abs=2)))
        # Whatever meets the claim takes as much, or is within the tie and claims no more.
        for way in ways:
            if chosen is not None and way.meets(claim):
                assert way.seconds > chosen.seconds / 1.1

    def way(self, kind, seconds, claim):
        return Way(kind=kind, name=kind, command="", seconds=seconds, of_retraining=0, claim=claim, why="")

    @pytest.mark.parametrize(("exact", "expected"), [(10.9, "shards"), (11.1, "rewind")])
    def test_what_takes_nearly_the_same_and_claims_more_is_preferred(self, exact, expected):
        ways = [self.way("rewind", 10.0, "approximate"), self.way("shards", exact, "exact")]
        assert recommend(ways, "approximate").kind == expected and recommend(ways, "exact").kind == "shards"

    def test_what_hides_meets_nothing(self):
        lotus = self.way("lotus", 1.0, "hidden")
        assert recommend([lotus], "approximate") is None is recommend([], "exact")
        assert recommend([lotus, self.way("retraining", 100.0, "exact")], "approximate").kind == "retraining"

    @pytest.mark.parametrize(
        ("fast", "until", "claim", "sentence"),
        [
            (10.0, 20.0, "approximate", "Retraining is cheaper than unlearning here."),
            (20.0, 10.0, "approximate", None),
            (10.0, 20.0, "exact", "Only retraining meets claim=exact here."),
        ],
    )
    def test_it_is_said_where_unlearning_does_not_pay(self, fast, until, claim, sentence):
        ways = [
            self.way("lotus", 1.0, "hidden"),
            self.way("until_pass", until, "approximate"),
            self.way("fast_retraining", fast, "unseen"),
            self.way("retraining", 30.0, "exact"),
        ]
        assert on_retraining(ways, claim) == sentence
        assert on_retraining(ways[:2], "approximate") is None


class TestWays:
    def test_a_plain_version(self, opened):
        ways = by_kind(compared(*opened()))
        claims = {kind: (way.claim, way.seconds is not None) for kind, way in ways.items()}
        assert claims == {
            "lotus": ("hidden", True),
            "until_pass": ("approximate", True),
            "rewind": ("approximate", False),
            "shards": ("exact", False),
            "fast_retraining": ("unseen", True),
            "retraining": ("exact", True),
        }
        assert "keep_checkpoints=" in ways["rewind"].why and "ensemble=" in ways["shards"].why
        assert ways["fast_retraining"].seconds == 35 and ways["retraining"].of_retraining == 1

    def test_their_commands_are_the_command_with_another_way(self, opened):
        session, recipe, options = opened()
        options = options.model_copy(update={"method": "scrub", "params": "p.yaml", "plan": True, "seed": 3})
        ways = by_kind(compared(session, recipe, options))
        same = f"mlflow-unlearn unlearn --model-uri models:/clf/1 --forget {FORGET}".split()
        more = "--seed 3 --device cpu".split()
        given = {kind: shlex.split(way.command) for kind, way in ways.items() if way.command}
        assert given["lotus"] == [*same, *more]
        assert given["until_pass"] == [*same, "--until", "pass", *more]
        assert given["retraining"] == [*same, "--method", "retrain", *more]
        params = given["fast_retraining"][given["fast_retraining"].index("--params") + 1]
        assert json.loads(params) == {"epochs": 7}

    def test_options_of_the_ladder_are_kept(self, opened):
        session, recipe, options = opened()
        options = options.model_copy(update={"until": "pass", "rungs": "lotus,retrain", "budget": 2.0})
        comparison = Comparison(session, options, recipe, {"lotus": 1.0, "retrain": 100.0})
        until = by_kind(comparison.ways((Rung("lotus"), Rung("retrain"))))["until_pass"]
        assert (until.name, until.seconds, until.claim) == ("until pass, up to retrain", 101.0, "exact")
        assert "--until pass --rungs lotus,retrain --budget 2.0" in until.command

    def test_a_ladder_of_lotus_alone_hides(self, opened):
        session, recipe, options = opened()
        comparison = Comparison(session, options, recipe, {"lotus": 1.0, "retrain": 100.0})
        assert by_kind(comparison.ways((Rung("lotus"),)))["until_pass"].claim == "hidden"

    def test_a_budget_that_allows_nothing(self, opened):
        session, recipe, options = opened()
        options = options.model_copy(update={"budget": 0.001})
        until = by_kind(compared(session, recipe, options, budget=0.001))["until_pass"]
        assert until.seconds is None and "budget=0.001 allows none of the rungs" in until.why

    def test_a_training_that_is_short_anyway(self, opened):
        session, recipe, options = opened()
        fast = by_kind(compared(session, replace(recipe, params={"epochs": 5}), options))["fast_retraining"]
        assert fast.seconds is None and "no more than 5 epochs" in fast.why

    def test_without_a_recorded_recipe_retraining_is_not_exact(self, opened):
        session, recipe, options = opened()
        unrecorded = by_kind(compared(session, Recipe({}, "none", None, None, recipe.model_factory), options))
        assert unrecorded["retraining"].claim == "unseen" and "default" in unrecorded["retraining"].name

    def test_a_version_that_was_trained_on_is_not_retrained_exactly(self, opened):
        trained_on = by_kind(compared(*opened(origin="models:/gold/1")))
        assert trained_on["retraining"].claim == "unseen" and "models:/gold/1" in trained_on["retraining"].why

    def test_a_training_is_run_again_in_one_process(self, opened):
        """As `unlearn` demands."""
        session, recipe, options = opened(origin="models:/gold/1")
        ways = by_kind(compared(session, recipe, options.model_copy(update={"processes": 2})))
        assert "--processes" not in ways["rewind"].command and "--processes 2" in ways["retraining"].command

    def test_nothing_meets_the_claim(self, opened, capsys):
        session, recipe, options = opened()
        ways = compared(session, replace(recipe, params={}), options)
        with mlflow.start_run():
            assert show(ways, "exact") is None
        assert "No way here meets claim=exact." in capsys.readouterr().out


class TestEnsemble:
    """Last in this file: its store stands in the place of the other one."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("exact", "ended_by", "claim", "expected"),
        [
            pytest.param(8.0, None, "exact", ("shards", 8), id="one shard"),
            pytest.param(8.0, None, "approximate", ("shards", 8), id="one shard, and less is asked"),
            pytest.param(100.0, None, "exact", ("shards", 100), id="all shards, from their first slice"),
            pytest.param(100.0, None, "approximate", ("fast_retraining", 42), id="the same, and less is asked"),
            pytest.param(8.0, "lotus", "exact", ("retraining", 100), id="no longer exact"),
        ],
    )
    def test_of_an_ensemble(self, ensemble, exact, ended_by, claim, expected):
        session, own, options = ensemble("random:1")
        shards = session.version.record.shards.model_copy(update={"ended_by": ended_by})
        session, own, options = ensemble("random:1", shards=shards)
        chosen = recommend(compared(session, own, options, exact=exact), claim)
        assert expected == (chosen.kind, pytest.approx(chosen.seconds, abs=2))

    def test_what_is_printed_fits_a_terminal(self, ensemble, capsys):
        ways = compared(*ensemble("random:1"))
        with mlflow.start_run() as run:
            chosen = show(ways, "exact")
        printed = capsys.readouterr().out
        rows = [line for line in printed.splitlines() if line.startswith(("│", "┃"))]
        assert len(rows) == 6 and max(map(len, rows)) <= 80
        assert "Not possible here: rewind (" in printed and f"\n  {chosen.command}\n" in printed
        assert f"Recommended for claim=exact: {chosen.name} ({chosen.seconds:.1f} s, " in printed
        logged = mlflow.get_run(run.info.run_id).data.metrics
        assert logged == {f"plan.{way.kind}": way.seconds for way in ways if way.seconds is not None}
