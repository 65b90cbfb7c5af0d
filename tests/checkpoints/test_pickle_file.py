"""Pickled checkpoints: weights are read, code is not run, and every refusal says why."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import corpus
from tests.checkpoints.corpus import Runs
from tests.checkpoints.damage import assert_read_or_told, overwrite
from vae_lib.checkpoints import open_weights, pickle_file, read_header
from vae_lib.errors import CheckpointError

Weights = dict[str, torch.Tensor]
SAVERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
}
TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3, dtype=torch.float16),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.fixture(params=SAVERS.values(), ids=SAVERS.keys())
def save(request: pytest.FixtureRequest) -> Callable[[Any, Path], None]:
    saver: Callable[[Any, Path], None] = request.param
    return saver


@pytest.mark.parametrize(
    "nesting",
    [
        (),
        ("state_dict",),
        ("model", "state_dict"),
        ("model_state_dict",),
        *((key,) for key in ("params", "params_ema", "ema", "generator", "vae", "net")),
        ("net", "vae", "state_dict"),
    ],
)
def test_tensors_are_found_however_they_are_wrapped(
    nesting: tuple[str, ...], save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    stored: Any = OrderedDict(TENSORS)
    for key in reversed(nesting):
        stored = {"epoch": 3, "note": "x", key: stored}
    save(stored, tmp_path / "x.ckpt")
    with open_weights(tmp_path / "x.ckpt") as file:
        assert file.header.format == "pickle"
        assert file.header.tensors.keys() == TENSORS.keys()
        assert file.header.tensors["half"].dtype == "float16"
        for name, tensor in TENSORS.items():
            read = file.read(name)
            assert torch.equal(read, tensor)
            assert read.is_contiguous()
            assert not read.requires_grad


def test_a_pickle_is_read_whatever_its_name_says(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(TENSORS, path)
    with open_weights(path) as file:
        assert torch.equal(file.read("a"), TENSORS["a"])


def test_tensors_outlive_the_file(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save(TENSORS, path)
    with open_weights(path) as file:
        read = file.read("a")
    path.write_bytes(b"")
    assert torch.equal(read, TENSORS["a"])


def plain_pickle(protocol: int) -> Callable[[Any, Path], None]:
    return lambda value, path: path.write_bytes(pickle.dumps(value, protocol=protocol)) and None


@pytest.mark.parametrize(
    "saver",
    [
        *SAVERS.values(),
        lambda value, path: torch.save(value, path, pickle_protocol=4),
        *(plain_pickle(protocol) for protocol in (2, 3, 4, 5)),
    ],
    ids=[*SAVERS, "zip, protocol 4", *(f"plain, protocol {protocol}" for protocol in (2, 3, 4, 5))],
)
@pytest.mark.parametrize("wrapped", [True, False], ids=["beside weights", "alone"])
def test_a_pickle_that_wants_to_run_code_is_refused(
    saver: Callable[[Any, Path], None], wrapped: bool, tmp_path: Path
) -> None:
    marker = tmp_path / "it ran"
    attacks = {
        "posix": Runs(os.system, f"touch '{marker}'"),
        "subprocess": Runs(subprocess.call, ["touch", str(marker)]),
        "exec": Runs(exec, f"open({str(marker)!r}, 'w')"),
        "eval": Runs(eval, f"__import__('pathlib').Path({str(marker)!r}).touch()"),
    }
    path = tmp_path / "evil.ckpt"
    for attack in attacks.values():
        saver({"state_dict": {**TENSORS, "evil": attack}} if wrapped else attack, path)
        with pytest.raises(CheckpointError, match=r"evil\.ckpt wants to run code .*\.safetensors"):
            read_header(path)
    assert not marker.exists()


def test_a_harmless_object_that_is_not_weights_is_refused_too(
    save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    save({"state_dict": TENSORS, "when": Path("x"), "who": np.random.RandomState}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"not weights \('(pathlib|numpy)\..*\.safetensors"):
        read_header(tmp_path / "x.ckpt")


@pytest.fixture
def lightning() -> Iterator[types.ModuleType]:
    """A module by the name of PyTorch Lightning's, there only while the checkpoint is written."""
    package = types.ModuleType("pytorch_lightning")
    callbacks = types.ModuleType("pytorch_lightning.callbacks")
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    checkpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = checkpoint  # type: ignore[attr-defined]
    added = {found.__name__: found for found in (package, callbacks, module)}
    sys.modules.update(added)
    yield module
    for name in added:
        sys.modules.pop(name, None)


def test_old_lightning_checkpoints_are_read_without_lightning(
    lightning: types.ModuleType, save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    """Stable Diffusion 1's own checkpoints are so: a class as a key, NumPy scalars among the values."""
    stored = {
        "epoch": 3,
        "global_step": np.int64(470000),
        "callbacks": {lightning.ModelCheckpoint: {"best_model_score": np.float32(0.5), "monitor": "loss"}},
        "state_dict": TENSORS,
    }
    path = tmp_path / "x.ckpt"
    save(stored, path)
    for name in [name for name in sys.modules if name.startswith("pytorch_lightning")]:
        del sys.modules[name]
    with open_weights(path) as file:
        assert file.header.tensors.keys() == TENSORS.keys()
        assert torch.equal(file.read("a"), TENSORS["a"])
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


def test_the_stand_ins_are_gone_afterwards(
    lightning: types.ModuleType, save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "x.ckpt"
    save({"callbacks": {lightning.ModelCheckpoint: 1}, "state_dict": TENSORS}, path)
    read_header(path)
    with pytest.raises(Exception, match="ModelCheckpoint"):
        torch.load(path, weights_only=True)


HARMLESS = {
    "classes": {
        "ref_type": int,
        "others": [str, bool, float, bytes, dict, list, tuple, object, frozenset, slice],
    },
    "int": {"key_type": int, "element_type": str},
    "containers": {
        "default": defaultdict(list, a=[1]),
        "deque": deque([1, 2]),
        "set": {1, 2},
        "frozen": frozenset({1}),
        "range": range(3),
        "complex": 1j,
        "slice": slice(1, 2),
    },
    "times and places": {"when": datetime(2024, 1, 1), "where": PurePosixPath("a/b")},
    "NumPy": {"dtype": np.dtype("float32"), "scalar": np.float32(1), "class": np.float32},
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_cannot_act_is_no_accusation(kind: str, protocol: int, zipped: bool, tmp_path: Path) -> None:
    """Lightning's hyper_parameters, with OmegaConf's bookkeeping of types, name builtins by the dozen."""
    path = tmp_path / "x.ckpt"
    stored = {"hyper_parameters": HARMLESS[kind], "state_dict": TENSORS}
    if kind == "containers" and protocol == 4:
        stored["hyper_parameters"] = {**HARMLESS[kind], "set": None, "frozen": None}
    torch.save(stored, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with open_weights(path) as file:
        assert torch.equal(file.read("a"), TENSORS["a"])


def test_python_313s_name_of_paths(tmp_path: Path) -> None:
    value = corpus.table(hyper=b"](cpathlib._local\nPosixPath\ne", x=corpus.stored_tensor((1,), (1,)))
    (tmp_path / "x.pt").write_bytes(corpus.zipped(corpus.pickled(value)))
    assert list(read_header(tmp_path / "x.pt").tensors) == ["x"]


def test_python_2s_names_of_builtins(tmp_path: Path) -> None:
    names = b"".join(b"c__builtin__\n" + name + b"\n" for name in (b"long", b"unicode", b"xrange", b"object"))
    value = corpus.table(hyper=b"](" + names + b"e", x=corpus.stored_tensor((1,), (1,)))
    (tmp_path / "x.pt").write_bytes(corpus.zipped(corpus.pickled(value)))
    assert list(read_header(tmp_path / "x.pt").tensors) == ["x"]


def test_an_expanded_tensor_is_not_blown_up(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    """A stride of 0 says 2^62 numbers in four bytes."""
    save({"decoder": torch.zeros(1).expand(2**31, 2**31)}, tmp_path / "x.pt")
    with open_weights(tmp_path / "x.pt") as file:
        assert file.header.tensors["decoder"].shape == (2**31, 2**31)
        with pytest.raises(CheckpointError, match="'decoder' is not a plain tensor"):
            file.read("decoder")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_and_quantized_tensors_are_refused(save: Callable[[Any, Path], None], tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    for tensor in (quantized, torch.eye(2).to_sparse()):
        save({"x": tensor}, tmp_path / "x.pt")
        # older versions of torch refuse them on opening already
        with pytest.raises(CheckpointError, match=r"x\.pt "), open_weights(tmp_path / "x.pt") as file:
            file.read("x")


@pytest.mark.parametrize(
    ("stored", "sentence"),
    [
        ({}, "holds no tensors"),
        ([], "holds no tensors"),
        (7, "holds no tensors"),
        ({"state_dict": {"x": 1}}, "holds no tensors"),
        ({"string_to_param": {"*": torch.ones(2, 768)}, "name": "x"}, "textual inversion"),
        ({"state_dict": 3, "x": torch.ones(1)}, None),
    ],
)
def test_pickles_without_weights(
    stored: Any, sentence: str | None, save: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    save(stored, tmp_path / "x.pt")
    if sentence is None:
        assert list(read_header(tmp_path / "x.pt").tensors) == ["x"]
    else:
        with pytest.raises(CheckpointError, match=sentence):
            read_header(tmp_path / "x.pt")


@given(data=st.data())
def test_damage_is_told_in_a_sentence(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cut short anywhere, or bytes overwritten: a sentence, or tensors of the shapes announced."""
    saver = data.draw(st.sampled_from(list(SAVERS)))
    path = tmp_path_factory.getbasetemp() / f"{saver}.ckpt"
    SAVERS[saver]({"a": torch.ones(3)}, path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        overwrite(data, content)
    path.write_bytes(content)
    assert_read_or_told(path)


def test_archives_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="without a PyTorch checkpoint"):
        read_header(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_header(path)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_header(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content",
    [
        corpus.zipped(corpus.pickled(b"}" + corpus.doubled(b"K\1", b"\x86") + b"K\1s")),  # as a key
        corpus.legacy(
            corpus.pickled(corpus.table(x=corpus.stored_tensor((2,), (1,), elements=10**6, legacy=True))), []
        ),
        corpus.zipped(corpus.pickled(corpus.table(x=corpus.stored_tensor((2,), (1,), elements=2)))),
        corpus.zipped(corpus.pickled(corpus.call("_codecs", "encode", corpus.text("a"), corpus.text("hex")))),
        corpus.zipped(corpus.pickled(corpus.call("torch", "FloatTensor", corpus.number(10)))),
        corpus.zipped(
            corpus.pickled(
                corpus.call(
                    "torch._tensor",
                    "_rebuild_from_type_v2",
                    corpus.named("torch", "FloatTensor"),
                    corpus.named("torch", "Tensor"),
                    corpus.group(corpus.number(10)),
                    b"}",
                )
            )
        ),
    ],
    ids=[
        "tuples",
        "storage not filled",
        "storage beyond its record",
        "codec",
        "class",
        "class by a function",
    ],
)
def test_what_takes_all_memory_or_time_is_found_before_torch_reads_it(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.serialization, "load", lambda *_, **__: pytest.fail("torch was asked"))
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pt (is damaged|contains a Python object)"):
        read_header(tmp_path / "x.pt")


def test_a_pickle_that_is_too_long_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_file, "MAX_PICKLE_BYTES", 1000)
    for content in (corpus.zipped(b"N" * 1001), corpus.legacy(b"N" * 1001 + b".", [])):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            read_header(tmp_path / "x.pt")


def test_attributes_of_a_parameter_do_not_replace_its_methods(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.detach = 5  # type: ignore[assignment, method-assign]
    torch.save({"a": parameter}, tmp_path / "x.pt")
    try:
        with open_weights(tmp_path / "x.pt") as file:
            assert file.read("a").tolist() == [1, 1]
    except CheckpointError as error:  # older versions of torch refuse attributes
        assert str(error).startswith("x.pt ")  # noqa: PT017


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_tensors_are_left_out(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    try:
        torch.save({"nested": nested, "a": torch.ones(1)}, tmp_path / "x.pt")
    except RuntimeError as error:  # PyTorch 2.1
        pytest.skip(str(error))
    try:
        assert list(read_header(tmp_path / "x.pt").tensors) == ["a"]
    except CheckpointError as error:  # older versions of torch refuse them
        assert str(error).startswith("x.pt ")  # noqa: PT017
