"""A training that was killed with SIGKILL goes on where it was, and ends with the same bits."""

import copy
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset
from toy import CPU, PLAIN_METHODS, class_splits, digits, original, splits

from mlflow_unlearn import cache
from mlflow_unlearn.data.datasets import Augmented
from mlflow_unlearn.engine.architectures import weights_digest
from mlflow_unlearn.engine.checkpoint import Checkpoint
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.past import Keep, Past, Point
from mlflow_unlearn.errors import UnlearnError
from mlflow_unlearn.evidence.checkpoints import Kept
from mlflow_unlearn.methods import BUILTIN, Method, OptimizerSpec, Params, Phase, all_indices
from mlflow_unlearn.methods.retrain import Training, cross_entropy
from mlflow_unlearn.methods.rewind import Rewind

HARD = {"lr": 0.01, "epochs": 3, "batch_size": 50}
PARAMS = {
    "lotus": {**HARD, "lr": 0.003},
    "bad_teacher": HARD,
    "retrain": HARD,
    "salun": HARD,
    "scrub": {**HARD, "msteps": 2, "lr_decay_epochs": (1,)},
    "unsir": {"epochs": 2, "repair_epochs": 2, "noise_steps": 3, "copies": 2, "batch_size": 50},
    "ssd": {"alpha": 1.0},
}
OTHERS = {name: HARD for name in PLAIN_METHODS if name not in PARAMS}


class Dying(Checkpoint):
    """Kills its process right after it has written for the n-th time, or right before."""

    saves, die_after, die_before = 0, 0, 0

    def save(self, state):
        self.saves += 1
        if self.saves == self.die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        super().save(state)
        if self.saves == self.die_after:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_UNLEARN_CHECKPOINT_SECONDS", "0")


class Task:
    """One training, as often as it is asked for."""

    def __init__(self, method, sets=None, hardware=CPU, model=None, **options):
        self.method, self.sets, self.hardware, self.options = method, sets or splits(), hardware, options
        self.model = model or original()

    def run(self, **dying):
        checkpoint = Dying("unlearn", "run", {"data": "digits"})
        vars(checkpoint).update(dying)
        options = RunOptions(3, checkpoint=checkpoint, **self.options)
        sets = self.sets if isinstance(self.sets, dict) else vars(self.sets)
        return run(self.model, self.method, sets, self.hardware, options), checkpoint

    def undisturbed(self):
        """Its outcome, and how many checkpoints it has written, none of which is left."""
        outcome, checkpoint = self.run()
        checkpoint.remove()
        return outcome, checkpoint.saves

    def killed(self, **dying) -> None:
        """In a process of its own."""
        child = os.fork()
        if not child:
            try:
                self.run(**dying)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL


def without_seconds(history):
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in history]


def goes_on(task: Task, moment: float = 0.6) -> None:
    """Killed at that fraction of its checkpoints and started again, it has the undisturbed weights and history."""
    undisturbed, saves = task.undisturbed()
    at = max(1, int(moment * saves))
    task.killed(die_after=at)
    again, second = task.run()
    assert weights_digest(again.model) == weights_digest(undisturbed.model) != weights_digest(task.model)
    assert without_seconds(again.history) == without_seconds(undisturbed.history)
    assert (again.final, again.warnings) == (undisturbed.final, undisturbed.warnings)
    assert second.saves == saves - at  # the rest, and nothing twice
    second.remove()
    assert not list(cache.entries(cache.CHECKPOINTS))


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("lotus", "salun", "unsir", "retrain") else pytest.param(name, marks=pytest.mark.slow)
        for name in [*PARAMS, *OTHERS]
        if name != "ssd"
    ],
)
def test_every_method(name):
    task = Task(BUILTIN[name]((PARAMS | OTHERS)[name]), class_splits() if name == "unsir" else None)
    goes_on(task)


def test_a_method_without_a_phase_has_none():
    assert Task(BUILTIN["ssd"](PARAMS["ssd"])).run()[1].saves == 0


@pytest.mark.parametrize("moment", [0.05, 0.34, 0.95])
def test_in_the_middle_of_an_epoch_and_at_its_end(moment):
    goes_on(Task(BUILTIN["lotus"](PARAMS["lotus"])), moment)


def test_before_the_second_checkpoint_the_first_one_counts():
    task = Task(Training(HARD))
    undisturbed, saves = task.undisturbed()
    task.killed(die_before=2)
    again, second = task.run()
    assert weights_digest(again.model) == weights_digest(undisturbed.model)
    assert second.saves == saves - 1


def test_the_best_state_that_the_plan_has_kept():
    goes_on(Task(BUILTIN["lotus"]({**PARAMS["lotus"], "keep": "closest"})), 0.9)


def test_behind_a_frozen_prefix():
    goes_on(Task(BUILTIN["lotus"](PARAMS["lotus"]), prefix="6"))


class Noisy(Dataset):
    """Another image each time, by torch's global generator."""

    def __init__(self, dataset):
        self.dataset, self.labels = dataset, dataset.tensors[1]

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return image + 0.1 * torch.randn_like(image), label


class Still(Noisy):
    """The same image each time."""

    def __getitem__(self, index):
        return self.dataset[index]


@pytest.mark.slow
def test_random_inputs_and_a_teacher_that_watches_them():
    goes_on(Task(BUILTIN["lotus"](PARAMS["lotus"]), replace(splits(), retain=Noisy(digits(30, 200)))))


@pytest.mark.slow
def test_a_dataset_of_the_users_own_that_never_changes_is_watched():
    goes_on(Task(BUILTIN["lotus"](PARAMS["lotus"]), replace(splits(), retain=Still(digits(30, 200)))))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_random_augmentation(workers):
    """With workers that read ahead, from the end of an epoch."""
    training = {"retain": Augmented(digits(0, 200), "crop-flip")}
    goes_on(Task(Training(HARD), training, replace(CPU, num_workers=workers)))


class Looking(Method):
    """Decides by the weights themselves."""

    name, Params = "looking", Params

    def plan(self, workspace):
        phase = Phase(cross_entropy, OptimizerSpec("sgd", 0.01), 32, retain=all_indices(workspace.labels("retain")))
        for epoch in range(3):
            yield phase
            workspace.record(epoch=epoch, norm=workspace.model[0].weight.norm().item())
        return {}


def test_what_a_plan_has_seen_of_the_weights_cannot_be_told_again():
    """It goes on from the end of the first epoch, the last state before it looked."""
    task = Task(Looking())
    undisturbed, saves = task.undisturbed()
    steps = 6  # 170 samples, 32 a step
    assert saves == steps
    task.killed(die_after=steps)
    again, _ = task.run()
    assert weights_digest(again.model) == weights_digest(undisturbed.model)
    assert again.history == undisturbed.history


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"method": Training({**HARD, "lr": 0.02})}, {"data": "others"}, {"model": "other"}, {"pixels": 1e-3}],
)
def test_another_training_does_not_find_it(other):
    sets = {"retain": digits(0, 200)}
    Task(Training(HARD), sets).killed(die_after=2)
    model = original()
    if "model" in other:
        with torch.no_grad():
            model[0].bias += 1e-3
    images, labels = digits(0, 200).tensors
    others = {"retain": TensorDataset(images + other.get("pixels", 0), labels)}  # under the same ids
    checkpoint, method = Checkpoint("unlearn", "run", {"data": other.get("data", "digits")}), Training(HARD)
    assert checkpoint.open(model, other.get("method", method), others, CPU, other.get("seed", 3), None) is None
    assert Checkpoint("unlearn", "run", {"data": "digits"}).open(original(), method, sets, CPU, 3, None) is not None


def test_a_damaged_one_is_not_used(capsys):
    task = Task(Training(HARD), {"retain": digits(0, 200)})
    undisturbed, checkpoint = task.run()
    [(path, _)] = cache.entries(cache.CHECKPOINTS)
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    again, second = task.run()
    assert "is damaged" in capsys.readouterr().err
    assert second.saves == checkpoint.saves
    assert weights_digest(again.model) == weights_digest(undisturbed.model)


def test_what_would_fail_again_is_not_kept():
    with pytest.raises(UnlearnError, match="the loss became"):
        Task(Training({**HARD, "lr": 10.0, "weight_decay": 1.0, "epochs": 40}), {"retain": digits(0, 200)}).run()
    assert not list(cache.entries(cache.CHECKPOINTS))


def test_short_work_has_none(monkeypatch):
    monkeypatch.delenv("MLFLOW_UNLEARN_CHECKPOINT_SECONDS")
    assert Task(Training(HARD), {"retain": digits(0, 200)}).run()[1].saves == 0


def test_none_without_a_cache(monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", "off")
    assert Task(Training(HARD), {"retain": digits(0, 200)}).run()[1].saves == 0


def test_a_full_disk_does_not_stop_the_training(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_UNLEARN_CACHE", str(tmp_path / "file" / "cache"))
    assert Task(Training(HARD), {"retain": digits(0, 200)}).run()[1].saves == 1
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_the_interval_has_to_be_a_number(monkeypatch):
    monkeypatch.setenv("MLFLOW_UNLEARN_CHECKPOINT_SECONDS", "often")
    with pytest.raises(UnlearnError, match="MLFLOW_UNLEARN_CHECKPOINT_SECONDS = 'often' is not a number of seconds"):
        Checkpoint("unlearn", "run", {})


def test_the_entry_names_the_model_and_not_the_data():
    task = Task(Training(HARD), {"retain": digits(0, 200)})
    task.run()
    [(_, facts)] = cache.entries(cache.CHECKPOINTS)
    assert (facts["weights"], facts["command"]) == (weights_digest(task.model), "unlearn")
    assert "digits" not in json.dumps(facts)


class TestKeptStates:
    """Of a training that was killed, those that were kept before stay, and none is kept twice."""

    @pytest.mark.slow
    def test_in_a_training_and_in_one_that_goes_back(self):
        states = {}

        def store(state, epochs):
            states[epochs] = copy.deepcopy(state)
            return Kept(run_id=str(os.getpid()), path=Kept.path_of(0, epochs), sha256="", stage=epochs)

        recipe = {**HARD, "epochs": 6}
        task = Task(Training(recipe), keep=Keep(5, 6, store))
        undisturbed, saves = task.undisturbed()
        assert [one.stage for one in undisturbed.kept] == [1, 2, 3, 4, 5]
        task.killed(die_after=saves // 2)
        again, checkpoint = task.run()
        checkpoint.remove()
        assert [one.stage for one in again.kept] == [1, 2, 3, 4, 5]
        assert again.kept[0].run_id != again.kept[-1].run_id == str(os.getpid())
        assert weights_digest(again.model) == weights_digest(undisturbed.model)

        points = tuple(Point(at, str(at), lambda at=at: states[at], seen=1) for at in states)
        back = {"keep": Keep(2, 6, store), "past": Past(points, 6, seed=3)}
        goes_on(Task(Rewind({**recipe, "share": 0.7}), **back), 0.7)

    def test_a_state_that_was_lost_since(self):
        """Nobody goes on in the middle of another schedule."""
        start = {"model": dict([*original().named_parameters(), *original().named_buffers()])}
        recipe, none = {**HARD, "share": 1.0}, Point(0, "0", lambda: start, seen=1)
        trained = {}
        keep = Keep(1, 3, lambda state, at: trained.update({at: copy.deepcopy(state)}) or Kept(**KEPT))
        run(original(), Training(HARD), vars(splits()), CPU, RunOptions(3, keep=keep))
        task = Task(
            Rewind({**recipe, "share": 0.5}), past=Past((Point(1, "1", lambda: trained[1], seen=1),), 3, seed=3)
        )
        task.killed(die_after=5)
        task.options["past"] = Past((none,), 3, seed=3)
        with pytest.raises(UnlearnError, match="a checkpoint of the version was lost since this command was killed"):
            task.run()
        assert not list(cache.entries(cache.CHECKPOINTS))


KEPT = {"run_id": "run", "path": Kept.path_of(0, 1), "sha256": "", "stage": 1}
