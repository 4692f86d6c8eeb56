import torch
from torch import nn

from mlflow_unlearn.methods._gradients import gradients


def test_by_name_of_what_the_loss_depends_on():
    """d/dw of 3w + w² at w = 2 is 7; of what has no part in the loss there is none."""
    parameters = {"w": nn.Parameter(torch.tensor([2.0])), "unused": nn.Parameter(torch.ones(3))}
    found = dict(gradients((3 * parameters["w"] + parameters["w"] ** 2).sum(), parameters))
    assert found.keys() == {"w"} and found["w"].tolist() == [7.0] and parameters["w"].grad is None
