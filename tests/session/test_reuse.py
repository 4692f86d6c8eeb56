"""What results depend on beside settings."""

from dataclasses import replace

import torch
from toy import original

from mlflow_unlearn.session.reuse import code_digest, reuse_key


def test_every_part_is_told_and_the_same_again(opened):
    key = reuse_key(opened)
    assert set(key) == {"pixels_sha256", "model_code_sha256", "torch", "threads", "device"}
    assert None not in key.values() and reuse_key(opened) == key
    assert key["threads"] == torch.get_num_threads() and key["device"] == "cpu, fp32"


def test_one_unknown_sample_set_leaves_the_pixels_unknown(opened):
    class Local(torch.utils.data.Dataset):
        def __len__(self):
            return len(opened.splits.test)

        def __getitem__(self, index):
            return opened.splits.test[index]

    key = reuse_key(replace(opened, splits=replace(opened.splits, test=Local())))
    assert [part for part, value in key.items() if value is None] == ["pixels_sha256"]


def test_the_code_of_methods_and_models():
    other = original()
    other.temperature = 2.0
    found = [
        code_digest(["ssd"]),
        code_digest(["ssd", "scrub"]),
        code_digest(["ssd"], original()),
        code_digest(["ssd"], other),
        code_digest(["ssd"], original(), original()),
    ]
    assert None not in found and len(set(found)) == 5
    other.state = torch.Generator()
    assert code_digest(["ssd"], other) is None
