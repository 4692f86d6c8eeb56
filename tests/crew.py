"""What `test_ranks` has computed by several ranks: ``python -m crew FOLDER``, or by this process alone."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset
from toy import CPU, PLAIN_METHODS, Listed, net, original, splits

from mlflow_unlearn import Splits, unlearn
from mlflow_unlearn.distributed import ranks
from mlflow_unlearn.engine.loop import RunOptions, run
from mlflow_unlearn.engine.method import Method, OptimizerSpec, Params, Phase
from mlflow_unlearn.engine.predictions import evaluate_splits
from mlflow_unlearn.engine.teacher import Teacher
from mlflow_unlearn.methods import BUILTIN

CHEAP = {"epochs": 2, "noise_steps": 3, "copies": 1, "batch_size": 32}
PARAMS = {
    name: {key: value for key, value in CHEAP.items() if key in method.Params.model_fields}
    for name, method in BUILTIN.items()
} | {"ssd": {"alpha": 1.0}}


def plain() -> nn.Module:
    """No BatchNorm, whose statistics are each rank's own, and no dropout."""
    return nn.Sequential(*(module for module in net(norm=False) if not isinstance(module, nn.Dropout)))


class OneStep(Method):
    """A gradient to be looked at: SGD at a learning rate of 1 subtracts it. The loss is not a mean over samples."""

    name = "one_step"
    Params = Params

    def plan(self, workspace):
        def loss(batch):
            by_set = [
                nn.functional.cross_entropy(batch.logits[m], batch.labels[m]) for m in (batch.forget, ~batch.forget)
            ]
            distance = (batch.logits.softmax(1).mean(0) - batch.teacher_logits.softmax(1).mean(0)).square().sum()
            return by_set[1] - by_set[0] / 2 + distance

        spec = OptimizerSpec("sgd", 1.0)
        yield Phase(loss, spec, 51, torch.arange(20), torch.arange(31), teacher="original")
        return {}


class Asked(Method):
    """What each rank's BatchNorm has after a pass."""

    name = "asked"
    Params = Params

    def plan(self, workspace):
        def loss(batch):
            return nn.functional.cross_entropy(batch.logits, batch.labels)

        yield Phase(loss, OptimizerSpec("sgd", 0.5), 32, retain=torch.arange(170))
        self.means = [workspace.model[1].running_mean] * ranks.size()
        if ranks.size() > 1:
            torch.distributed.all_gather_object(self.means, workspace.model[1].running_mean)
        return {}


class Masked(Method):
    """The dropout masks of each rank, step by step, and a draw from its global generator after all of them."""

    name = "masked"
    Params = Params

    def plan(self, workspace):
        masks = []
        dropout = next(module for module in workspace.model.modules() if isinstance(module, nn.Dropout))
        # Its inputs are positive where they are not 0 for all samples.
        hook = dropout.register_forward_hook(lambda _, inputs, output: masks.append((output == 0) & (inputs[0] != 0)))

        def loss(batch):
            return nn.functional.cross_entropy(batch.logits, batch.labels)

        yield Phase(loss, OptimizerSpec("sgd", 0.0), 34, retain=torch.arange(170))
        hook.remove()
        mine = (masks, torch.rand(()).item())
        self.found = [mine] * ranks.size()
        if ranks.size() > 1:
            torch.distributed.all_gather_object(self.found, mine)
        return {}


def alike() -> dict[str, TensorDataset]:
    """One image many times: where masks were shared, the ranks would drop the same."""
    images, labels = splits().retain.tensors
    same = TensorDataset(images[:1].expand(170, -1, -1, -1).contiguous(), labels)
    return {**vars(splits()), "retain": same}


def twisted() -> Splits:
    """A set that is read sample by sample, and sets too small to be shared."""
    some = splits()
    few = TensorDataset(*(part[:3] for part in some.val.tensors))
    return Splits(Listed(some.forget), some.retain, few, TensorDataset(*(part[:1] for part in some.test.tensors)))


def work(folder: Path) -> None:
    sets = splits()
    found = {}
    for name in PLAIN_METHODS:
        found[name] = unlearn(plain(), sets, name, PARAMS[name], seed=3, device="cpu").model.state_dict()
    with (folder / "epochs").open("w") as file:  # which cannot be pickled

        def write(epoch: dict[str, float]) -> None:
            file.write(f"{epoch['epoch']} ")

        taught = unlearn(plain(), sets, "lotus", PARAMS["lotus"], seed=3, device="cpu", prefix="5", on_epoch=write)
    found["prefix"] = taught.model.state_dict()
    found["heard"] = (folder / "epochs").read_text()
    found["one step"] = run(plain(), OneStep(), vars(sets), CPU, RunOptions(0)).model.state_dict()
    found["norm"] = run(original(), BUILTIN["finetune"](), vars(sets), CPU, RunOptions(0)).model.state_dict()
    asked = Asked()
    run(original(), asked, vars(sets), CPU, RunOptions(0))
    found["means"] = asked.means
    masked = Masked()
    run(original(), masked, alike(), CPU, RunOptions(0))
    found["masks"] = masked.found
    for name, data in (("read", sets), ("read twisted", twisted())):
        teacher = Teacher(original(), vars(data), CPU)
        outputs = evaluate_splits(original(), data, CPU, teacher=teacher)
        found[name] = {split: vars(split_outputs) for split, split_outputs in outputs.items()}
        found[f"{name}, taught"] = {role: teacher.predictions(role) for role in ("forget", "retain", "val")}
        found[f"{name}, passes"] = teacher.passes
    torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    with ranks.joined_up() as leads:
        if leads:
            work(Path(sys.argv[1]))
        else:
            ranks.worker_loop()
