"""Digests of stored files."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import _TYPES, save_file

from mlflow_unlearn.engine.architectures import state_digest
from mlflow_unlearn.registry.digests import stored_weights_digest


def test_the_stored_weights_have_the_digest_of_the_module(tmp_path):
    """Of every type that the file can hold, of scalars, and of tensors without elements."""
    numbers = torch.arange(6).reshape(2, 3)
    state = {f"layer.{name}": numbers.to(kind) for name, kind in _TYPES.items()}
    state |= {"batches": torch.tensor(7), "nothing": torch.zeros(0, 4)}
    (tmp_path / "extra_files").mkdir()
    save_file(state, tmp_path / "extra_files" / "weights.safetensors")
    assert stored_weights_digest(tmp_path) == state_digest(state)


def test_what_is_no_such_file(tmp_path):
    (tmp_path / "extra_files").mkdir()
    (tmp_path / "extra_files" / "weights.safetensors").write_bytes(b"not this")
    with pytest.raises(SafetensorError):
        stored_weights_digest(tmp_path)
