"""Hostile and broken files, one of each kind: made on the spot, the largest a few hundred kilobytes.

``contents`` gives the bytes of those that are files, ``write`` a folder with all of them and with what only a
file system can hold: links in a circle, pipes, folders in the place of files, what nobody may read.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import posixpath
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MANY = 40  # doublings that no memory and no patience is enough for


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor_entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def unknown_dtype(**shapes: list[int]) -> bytes:
    """Tensors of a dtype that the reader does not know, so of any shape in no bytes."""
    named = {key.replace("__", "."): shape for key, shape in shapes.items()}
    return safetensors({key: tensor_entry("F4_NEW", shape, (0, 0)) for key, shape in named.items()})


def vae_of(width: int) -> dict[str, list[int]]:
    return {
        "decoder__conv_in__weight": [width, 4, 3, 3],
        "decoder__conv_out__weight": [3, width, 3, 3],
        "decoder__up__0__block__0__conv1__weight": [width, width, 3, 3],
        "decoder__up__0__block__1__conv1__weight": [width, width, 3, 3],
    }


def _blocks(count: int) -> dict[str, list[int]]:
    return {
        f"decoder__up__{level}__block__{block}__conv1__weight": [32, 32, 3, 3]
        for level in range(count)
        for block in range(count)
    }


def _safetensors() -> dict[str, bytes]:
    two = bytes(8)
    deep = b'{"a":' * 20_000
    return {
        "length cut": b"\x10\0\0",
        "length 2^63": safetensors({"a": tensor_entry()}, two, 2**63),
        "length 2^64-1": safetensors({"a": tensor_entry()}, two, 2**64 - 1),
        "length beyond the end": safetensors({"a": tensor_entry()}, two, 90_000_000),
        "no length": safetensors({"a": tensor_entry()}, two, 0),
        "header not UTF-8": safetensors(b'{"\xff\xfe": 1}'),
        "header cut": safetensors(b'{"a": {"dtype": "F32"'),
        "header a list": safetensors([1, 2]),
        "header null": safetensors(None),
        "header a huge number": safetensors(b'{"a": ' + b"9" * 10_000 + b"}"),
        "nested deeply": safetensors(deep + b"1" + b"}" * 20_000),
        "nested deeply in lists": safetensors(b'{"a":' + b"[" * 100_000),
        "a key twice": safetensors(b'{"a": 1, "a": 2}'),
        "overlap": safetensors({"a": tensor_entry(), "b": tensor_entry(offsets=(4, 12))}, bytes(12)),
        "negative offset": safetensors({"a": tensor_entry(offsets=(-8, 0))}, two),
        "offsets backwards": safetensors({"a": tensor_entry(offsets=(8, 0))}, two),
        "offset beyond the end": safetensors({"a": tensor_entry(shape=(2**40,), offsets=(0, 2**42))}, two),
        "offset 2^64": safetensors({"a": tensor_entry(offsets=(0, 2**64))}, two),
        "dimension 2^31": safetensors({"a": tensor_entry(shape=(2**31, 2))}, two),
        "dimension -1": safetensors({"a": tensor_entry(shape=(-1, -2))}, two),
        "product overflows": safetensors({"a": tensor_entry(shape=(2**32, 2**32, 2))}, two),
        "product overflows to 0": safetensors({"a": tensor_entry("U8", [2**32, 2**32], (0, 0))}),
        "thousands of dimensions": safetensors({"a": tensor_entry(shape=[1] * 50_000)}, two),
        "no elements": safetensors({"decoder.conv_in.weight": tensor_entry("F32", [0, 2**62, 0], (0, 0))}),
        "unprintable key": safetensors({"\x1b[2J\0\n\r\u202e": 3}),
        "lone surrogate as key": safetensors({"\ud800decoder": tensor_entry()}, two),
        "very long key": safetensors({"decoder." * 30_000: tensor_entry()}, two),
        "unicode digits in a key": unknown_dtype(decoder__up_blocks__٣__resnets__١__conv1__weight=[1]),
        "unknown dtype": safetensors({"a": tensor_entry("F4_NEW")}, two),
        "dtype a list": safetensors({"a": tensor_entry(["F32"])}, two),
        "lists for tables": safetensors({"a": [1, 2, 3], "b": [[]]}),
        "tables for lists": safetensors({"a": tensor_entry("F32", {"2": 2}, {"0": 0, "8": 8})}, two),
        "metadata a list": safetensors({"__metadata__": [1], "a": tensor_entry()}, two),
        "a VAE of 2^62 channels": unknown_dtype(**vae_of(2**62)),
        "a VAE of 2^40 channels": unknown_dtype(**vae_of(2**40)),
        "a VAE of 2,500 blocks": unknown_dtype(
            **vae_of(32), **{key: shape for key, shape in _blocks(50).items() if key not in vae_of(32)}
        ),
        "a TAESD of 2^62 channels": unknown_dtype(
            decoder__1__weight=[64, 2**62, 1, 1], decoder__3__conv__0__weight=[64, 64, 3, 3]
        ),
        "a VAE whose metadata is odd": safetensors(
            {
                "__metadata__": {"vae_guard.family": "\ud800\x1b[31m\n" * 999, "scaling_factor": "1e308"},
                **{key.replace("__", "."): tensor_entry("F4_NEW", shape, (0, 0)) for key, shape in vae_of(32).items()},
            }
        ),
    }


# Pickles by their opcodes: what torch.save would never write.


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + group(*arguments) + b"R"


def table(**entries: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def pickled(value: bytes) -> bytes:
    return b"\x80\x02" + value + b"."


def stored_tensor(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    *,
    elements: int = 1,
    offset: int = 0,
    legacy: bool = False,
) -> bytes:
    storage = [text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu"), number(elements)]
    return call(
        "torch._utils",
        "_rebuild_tensor_v2",
        group(*storage, *([b"N"] if legacy else [])) + b"Q",
        number(offset),
        group(*map(number, shape)),
        group(*map(number, stride)),
        b"\x89",
        call("collections", "OrderedDict"),
    )


def zipped(pickle_bytes: bytes, record: bytes = bytes(4), compression: int = zipfile.ZIP_STORED) -> bytes:
    """The form of ``torch.save``: the pickle and one record of storage."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in (("data.pkl", pickle_bytes), ("version", b"3\n"), ("data/0", record)):
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def legacy(pickle_bytes: bytes, keys: list[str], storages: bytes = b"") -> bytes:
    """The form of ``torch.save`` before 1.6: five pickles and the storages."""
    start = (
        0x1950A86A20F9469CFC6C,
        1001,
        {"little_endian": True, "protocol_version": 1001, "type_sizes": {}},
    )
    return b"".join((*(pickle.dumps(part, 2) for part in start), pickle_bytes, pickle.dumps(keys, 2), storages))


def doubled(start: bytes, opcode: bytes) -> bytes:
    """``start`` paired with itself again and again; ``opcode`` makes the pair of the two on the stack."""
    memo = (bytes([b"q"[0], index, b"h"[0], index]) for index in range(MANY))
    return start + b"".join(step + opcode for step in memo)


class Runs:
    """Unpickling it calls the function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def _attacks(canary: Path) -> dict[str, Any]:
    touch = f"__import__('pathlib').Path({str(canary)!r}).touch()"
    system = Runs(os.system, f"touch '{canary}'")
    return {
        "os.system": system,
        "eval": Runs(builtins.eval, touch),
        "exec": Runs(builtins.exec, touch),
        "open": Runs(builtins.open, str(canary), "w"),
        "getattr": Runs(getattr, Runs(__import__, "os"), "system"),
        "nested": {"state_dict": {"decoder": [{"deep": (1, {"er": system})}]}},
        "makedirs": Runs(os.makedirs, str(canary)),
        "posixpath": Runs(posixpath.join, "a", "b"),
    }


def _modest_bomb() -> bytes:
    """300 MB of zeros in 300 bytes, announced as 4 bytes."""
    buffer, megabyte = io.BytesIO(), bytes(10**6)
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive,
        archive.open("archive/data.pkl", "w") as record,
    ):
        for _ in range(300):
            record.write(megabyte)
    return buffer.getvalue().replace(struct.pack("<I", 300 * 10**6), struct.pack("<I", 4))


def _pickles(canary: Path) -> dict[str, bytes]:
    found = {}
    for name, attack in _attacks(canary).items():
        found[f"runs {name}, plain"] = pickle.dumps(attack, 4)
        found[f"runs {name}, zip"] = zipped(pickle.dumps(attack, 2))
        found[f"runs {name}, legacy"] = legacy(pickle.dumps(attack, 2), [])
    buffer = io.BytesIO()
    torch.save({"decoder.conv_in.weight": torch.ones(4, 4)}, buffer)
    good, one = buffer.getvalue(), (1,)
    hexed = b"".join(text("hex") + b"\x86R" for _ in range(MANY))
    tree = b"".join(b"]q" + bytes([index]) for index in range(MANY)) + b"".join(
        b"h" + bytes([index]) + (b"h" + bytes([index + 1]) + b"a") * 2 for index in range(MANY - 1)
    )
    return found | {
        "zip cut": good[: len(good) // 2],
        "zip without its end": good[:-30],
        "zip bomb": zipped(bytes(20_000_000), compression=zipfile.ZIP_DEFLATED),
        "zip bomb in a record": zipped(pickled(table()), bytes(20_000_000), zipfile.ZIP_DEFLATED),
        "zip bomb that claims to be small": _modest_bomb(),
        "zip that claims to be huge": good.replace(struct.pack("<I", 64), struct.pack("<I", 2**31)),
        "zip of nothing": zipped(b""),
        "storage of 2^31": zipped(pickled(table(x=stored_tensor((2**31,), one, elements=2**31)))),
        "storage of 2^62": zipped(pickled(table(x=stored_tensor((2**62,), one, elements=2**62)))),
        "storage larger than its record": zipped(pickled(table(x=stored_tensor((64,), one, elements=64)))),
        "tensor larger than its storage": zipped(pickled(table(x=stored_tensor((2**31,), one)))),
        "negative offset in a storage": zipped(pickled(table(x=stored_tensor(one, one, offset=-1)))),
        "negative stride": zipped(pickled(table(x=stored_tensor((1, 1), (-1, 1))))),
        "negative shape": zipped(pickled(table(x=stored_tensor((-1,), one)))),
        "huge stride": zipped(pickled(table(x=stored_tensor((2, 2), (2**61, 2**61))))),
        "stride 0": zipped(pickled(table(x=stored_tensor((2**31, 2**31), (0, 0))))),
        "legacy cut": legacy(pickled(table(x=stored_tensor(one, one, legacy=True))), ["0"]),
        "legacy storage never filled": legacy(
            pickled(table(x=stored_tensor((2**28,), one, elements=2**28, legacy=True))), []
        ),
        "legacy storage of 2^62": legacy(
            pickled(table(x=stored_tensor(one, one, elements=2**62, legacy=True))), ["0"], bytes(12)
        ),
        "holds itself": zipped(pickled(b"}q\0(" + text("state_dict") + b"h\0u")),
        "list that holds itself": zipped(pickled(b"]q\0h\0a")),
        "billion laughs as a key": zipped(pickled(b"}" + doubled(b"K\1", b"\x86") + b"K\1s")),
        "billion laughs in a set": zipped(pickled(call("__builtin__", "set", b"](" + doubled(b"K\1", b"\x86") + b"e"))),
        "billion laughs as a tensor": zipped(pickled(named("torch", "FloatTensor") + tree + b"h\0\x85R")),
        "billion laughs in hexadecimal": zipped(
            pickled(named("_codecs", "encode") * (MANY + 1) + text("ab") + text("latin1") + b"\x86R" + hexed)
        ),
        "a tensor of 2^33 by its class": zipped(pickled(table(x=call("torch", "FloatTensor", number(2**33))))),
        "an OrderedDict without its methods": zipped(
            pickled(call("collections", "OrderedDict") + table(items=b"K\5", keys=b"K\5", get=b"K\5") + b"b")
        ),
        "a parameter without its methods": zipped(
            pickled(
                table(
                    x=call(
                        "torch._utils",
                        "_rebuild_parameter_with_state",
                        stored_tensor(one, one),
                        b"\x89",
                        call("collections", "OrderedDict"),
                        table(detach=b"K\5", untyped_storage=b"K\5"),
                    )
                )
            )
        ),
        "a nested tensor": zipped(
            pickled(
                table(
                    x=call(
                        "torch._utils",
                        "_rebuild_nested_tensor",
                        stored_tensor(one, one),
                        *[call("torch", "LongTensor", b"](](K\1ee")] * 2,
                        call("torch", "LongTensor", b"](K\0e"),
                    )
                )
            )
        ),
        "a very long number": zipped(pickled(b"}\x8b" + struct.pack("<i", 300_000) + b"\1" * 300_000 + b"K\1s")),
        "a very long number in digits": zipped(pickled(b"L" + b"9" * 300_000 + b"L\n")),
        "a flood of opcodes": zipped(pickled(b"N" * 100_000)),
        "a flood of lists": zipped(pickled(b"(" * 50_000 + b"l" * 50_000)),
        "a flood of memos": zipped(pickled(b"N" + b"".join(b"r" + struct.pack("<I", n) for n in range(50_000)))),
        "memo that is not there": zipped(pickled(b"h\x09")),
        "string of 2^60": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x.",
        "string of 2^60, zip": zipped(b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"x."),
        "keys of every kind": zipped(
            pickled(b"}(" + b"".join(key + stored_tensor(one, one) for key in (b"N", b"K\1", text("\ud800"))) + b"u")
        ),
        "stack underflow": zipped(pickled(b"R")),
        "a tar in the place of a pickle": b"\x80\x02}.".ljust(257, b"\0") + b"ustar".ljust(255, b"\0"),
    }


def _others() -> dict[str, bytes]:
    return {
        "empty": b"",
        "one byte": b"\x80",
        "zeros": bytes(1000),
        "noise": bytes((index * 7919) >> 3 & 255 for index in range(4000)),
        "an error page": b"<!DOCTYPE html><html><body>404</body></html>",
        "an error in JSON": b'{"error": "Unauthorized"}',
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(20),
        "GGUF": b"GGUF" + bytes(20),
        "gzip": b"\x1f\x8b" + bytes(20),
    }


def contents(canary: Path) -> dict[str, bytes]:
    """File name -> bytes; where code of the file ran, ``canary`` is there."""
    kinds = (
        (_safetensors(), ".safetensors"),
        (_pickles(canary), ".pt"),
        (_others(), ".safetensors"),
        (_others(), ".ckpt"),
    )
    return {f"{name}{suffix}": content for files, suffix in kinds for name, content in files.items()}


def write(folder: Path, canary: Path) -> list[Path]:
    """Fill a folder with all of it but ``no_permission``; gives the paths that a user may name as a file."""
    paths = []
    for name, content in contents(canary).items():
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    links = {"circle": "circle", "dangling": "nowhere", "to a folder": ".", "to a device": "/dev/zero"}
    for name, target in links.items():
        paths.append(folder / f"link {name}.safetensors")
        paths[-1].symlink_to(target)
    for name in ("up", "up again"):
        (folder / name).symlink_to(".", target_is_directory=True)
    paths += [folder / "folder.safetensors", folder / "pipe.safetensors", folder / "pipe.ckpt"]
    paths[-3].mkdir()
    os.mkfifo(paths[-2])
    os.mkfifo(paths[-1])
    (folder / "config.json").symlink_to("pipe.ckpt")
    undecodable = folder / os.fsdecode(b"name \xff\n\x1b[31m.safetensors")
    undecodable.write_bytes(safetensors({}))
    deepest = folder / "/".join("d" * 700)
    deepest.mkdir(parents=True)
    (deepest / "deep.safetensors").write_bytes(b"")
    return [*paths, undecodable, deepest / "deep.safetensors", folder / ("n" * 300 + ".safetensors")]


def no_permission(folder: Path) -> list[Path]:
    """Files that nobody may read, in folders that may be entered and listed, neither, or only listed."""
    paths = [
        folder / "secret.safetensors",
        folder / "closed" / "in.safetensors",
        folder / "listed" / "in.safetensors",
    ]
    for path, mode in zip(paths, (0o755, 0o000, 0o444), strict=True):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(safetensors({}))
        path.chmod(0)
        if path.parent != folder:
            path.parent.chmod(mode)
    return paths
