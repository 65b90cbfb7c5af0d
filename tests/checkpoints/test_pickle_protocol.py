"""Pickles of newer protocols, in the words of protocol 2: the same values, and nothing that was not there."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints.damage import assert_read_or_told, overwrite
from vae_lib.checkpoints import open_weights
from vae_lib.checkpoints.pickle_protocol import protocol_of, to_protocol_2

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(value=PLAIN, protocol=st.integers(3, 5))
def test_values_stay_the_same(value: object, protocol: int) -> None:
    shared = [value, "text", value, ("text", OrderedDict(text=value))]
    old = to_protocol_2(io.BytesIO(pickle.dumps(shared, protocol)))
    assert old[:2] == b"\x80\x02"
    assert pickle.loads(old) == shared


def test_sets_cannot_be_said() -> None:
    with pytest.raises(ValueError, match="EMPTY_SET has no counterpart"):
        to_protocol_2(io.BytesIO(pickle.dumps({1}, 4)))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_are_read(protocol: int, zipped: bool, tmp_path: Path) -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    weights["c"] = weights["a"].T
    path = tmp_path / "x.ckpt"
    stored = {"epoch": 3, "hyper": {"lr": 1e-4, "name": "a"}, "state_dict": OrderedDict(weights)}
    torch.save(stored, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert protocol_of(path, is_zip=zipped) == protocol
    with open_weights(path) as file:
        assert file.header.tensors.keys() == weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(file.read(name), tensor)


@given(data=st.data())
def test_damage_is_told(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "protocol4.ckpt"
    torch.save({"a": torch.ones(3)}, path, pickle_protocol=4, _use_new_zipfile_serialization=False)
    content = bytearray(path.read_bytes())
    overwrite(data, content)
    path.write_bytes(content)
    assert_read_or_told(path)
