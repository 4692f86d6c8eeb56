from torch import nn
from toy import net

from mlflow_unlearn.methods._weights import feature_weights, too_few
from mlflow_unlearn.testing import original


def test_kernels_but_not_the_output_layer():
    assert list(feature_weights(net())) == ["0.weight"]
    assert list(feature_weights(original("cnn"))) == ["0.weight", "2.weight"]


def test_of_a_vit_what_attends_and_what_follows():
    block = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    expected = ["patch_embed.proj.weight", *(f"blocks.{i}.{name}.weight" for i in (0, 1) for name in block)]
    assert list(feature_weights(original("vit"))) == expected


def test_of_torchs_own_attention():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.Linear(8, 3))
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert list(feature_weights(model)) == [f"0.{name}" for name in names]


def test_what_is_frozen_or_shared_does_not_count_twice():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    assert list(feature_weights(model)) == ["0.weight"]


def test_half_of_the_layers_are_enough():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    assert too_few("m", "w", 2, model, "use x") is None
    assert too_few("m", "w", 1, model, "use x").startswith(
        "m would change 1 of the 4 layers that are trained here (w),"
    )
    assert too_few("m", "w", 0, nn.Flatten(), "use x").endswith(": use x")
