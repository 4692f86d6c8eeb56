"""The part of `peers.py` that runs in the environment of supreme-unlearning: one of its methods, once.

python peers_supreme.py TASK METHOD SEED OUT
"""

import random
import sys
import time

import torch
from lightning.fabric import Fabric
from supreme.methods.unlearning_methods.bad_teacher import bad_teacher
from supreme.methods.unlearning_methods.finetune import finetune
from supreme.methods.unlearning_methods.random_labeling import random_labeling
from supreme.methods.unlearning_methods.scrub import scrub
from supreme.methods.unlearning_methods.ssd import ssd
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.models.resnet import BasicBlock, ResNet

BATCH = 128


def network() -> ResNet:
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    model.conv1 = torch.nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


class Labelled(Dataset):
    """Its data sets give a class beside the label, both as integers."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        return self.images[index], self.labels[index], self.labels[index]


def main() -> None:
    path, method, seed, out = sys.argv[1:]
    random.seed(int(seed))
    torch.manual_seed(int(seed))
    task = torch.load(path)
    model = network()
    model.load_state_dict(task["original"])
    forget, retain, test = (Labelled(*task[name]) for name in ("forget", "retain", "val"))
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()

    def loader(data: Dataset) -> DataLoader:
        return fabric.setup_dataloaders(DataLoader(data, BATCH, shuffle=True))

    # It measures on this one after each epoch, which is not unlearning: one batch.
    few = fabric.setup_dataloaders(DataLoader(torch.utils.data.Subset(test, range(BATCH)), BATCH))
    common = {"fabric": fabric, "num_gpus": 0, "wandb_logging_flag": False, "model": model}
    calls = {
        "finetune": (finetune, {"retain_train_dataloader": loader(retain), "retain_test_dataloader": few}),
        "bad_teacher": (
            bad_teacher,
            {
                "unlearning_teacher": fabric.setup_module(network()).eval(),
                "retain_train_dataloader": loader(retain),
                "forget_train_dataloader": loader(forget),
            },
        ),
        "random_labels": (
            random_labeling,
            {
                "type_of_unlearning_strategy": "random_",
                "num_labels": 10,
                "retain_train_dataloader": loader(retain),
                "retain_test_dataloader": few,
                "forget_train_dataloader": loader(forget),
            },
        ),
        "scrub": (scrub, {"retain_train_dataloader": loader(retain), "forget_train_dataloader": loader(forget)}),
        "ssd": (
            ssd,
            {
                "forget_train_dataloader": loader(forget),
                "full_train_dataloader": loader(ConcatDataset([retain, forget])),
                "dampening_constant": 1.0,
                "selection_weighting": 10.0,
            },
        ),
    }
    run, own = calls[method]
    start = time.perf_counter()
    result = run(**common, **own)
    seconds = time.perf_counter() - start
    state = {key.removeprefix("module.").removeprefix("_forward_module."): v for key, v in result.state_dict().items()}
    torch.save({"state": state, "seconds": seconds}, out)


if __name__ == "__main__":
    main()
