"""Reading PyTorch's pickled checkpoints (.pt, .pth, .ckpt, .bin) without running anything that they contain.

The gate is ``torch.load(weights_only=True)``, which knows tensors and containers and nothing else. Before
it, the pickle's opcodes are listed (not executed) to learn which Python objects it names. Two things follow
from the list: a refusal can say what the file asked for, and the bookkeeping that old PyTorch Lightning
checkpoints carry beside their weights (callback classes, NumPy scalars) is read as inert placeholders; the
real classes are never imported.
"""

from __future__ import annotations

import contextlib
import io
import pickletools
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch

from vae_lib.checkpoints.header import Header, TensorInfo, quote
from vae_lib.errors import CheckpointError

MAX_PICKLE_BYTES = 100_000_000
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, the storages' keys; raw bytes follow
_globals_lock = threading.RLock()
_NESTED = ("state_dict", "model_state_dict", "model", "module")

# Modules with which a pickle can run programs, reach files or the network, or look further objects up.
_DANGEROUS = frozenset(
    """
    os posix nt ntpath posixpath subprocess sys builtins __builtin__ importlib runpy shutil socket pty
    platform commands popen2 pickle _pickle code codeop ctypes webbrowser asyncio multiprocessing threading
    http urllib requests httplib ftplib smtplib tempfile pip pdb bdb timeit cProfile profile trace doctest
    operator _operator functools types marshal inspect site signal glob fileinput linecache pydoc
    """.split()  # noqa: SIM905 - a list of fifty quoted names reads worse
)
# Training bookkeeping: never needed to read the weights, so placeholders do.
_BOOKKEEPING = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\..+|argparse\.Namespace|typing\.Any|_codecs\.encode"
    r"|numpy\.(dtype|ndarray|_?core\.multiarray\.(scalar|_reconstruct))"
)
# What torch.load(weights_only=True) takes by itself; only used to word a refusal.
_WEIGHTS = re.compile(
    r"collections\.OrderedDict"
    r"|torch\.(\w+|serialization\._get_layout|_utils\._rebuild_\w+|nn\.parameter\.Parameter|storage\.\w+|_tensor\.\w+)"
)
_BUILTIN_DATA = frozenset(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("set", "dict", "list", "int", "float")
)


def looks_like_pickle(start: bytes) -> bool:
    """Whether the first bytes of a file are those of ``torch.save``, in its zip form or the one before it."""
    return start.startswith((_ZIP_MAGIC, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


class PickleFile:
    """The tensors of a pickled checkpoint; those of a zipped one are mapped and cost nothing until read.

    Raises:
        CheckpointError: when the file is damaged, names objects other than weights, or holds no tensors.
        OSError: when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._tensors = _tensors(_load(path), path.name)
        tensors = {
            name: TensorInfo(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        }
        self.header = Header(path, "pickle", path.stat().st_size, {}, tensors)

    def __enter__(self) -> PickleFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensors = {}

    def read(self, name: str) -> torch.Tensor:
        """One tensor on the CPU, in memory of its own.

        Raises:
            CheckpointError: when it is not a plain tensor of its own data.
        """
        tensor = self._tensors[name].detach()
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        # a stride of 0 makes a tensor of any size out of one number: a copy must not follow it
        if not plain or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{self.header.path.name} is damaged: {quote(name)} is not a plain tensor.")
        return tensor.clone(memory_format=torch.contiguous_format)


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP_MAGIC
    try:
        named = _named_in_zip(path) if is_zip else _named_in_legacy(path)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files fail in many ways, all of them meaning the same
        raise _damaged(path.name) from error
    _refuse_code(named, path.name)
    failure: Exception | None = None
    # Mapped where the format allows it: then only the tensors that are used are read. Where mapping fails
    # (some network drives, some versions of torch), read whole.
    for options in ({"mmap": True}, {}) if is_zip else ({},):
        try:
            with _placeholders(named):
                # Not torch.load, which the WebUI replaces by one that refuses the files of newer versions of torch.
                return torch.serialization.load(str(path), map_location="cpu", weights_only=True, **options)
        except Exception as error:
            failure = error
    others = sorted(name for name in named - _BUILTIN_DATA if not _WEIGHTS.fullmatch(name))
    raise _not_weights(others[0], path.name) if others else _damaged(path.name) from failure


def _damaged(name: str) -> CheckpointError:
    return CheckpointError(f"{name} is damaged or cut short; download or copy it again.")


def _not_weights(found: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} contains a Python object that is not weights ({quote(found)}) and cannot be "
        "read safely, so it was refused; use the .safetensors version of it."
    )


def _refuse_code(named: set[str], name: str) -> None:
    for found in sorted(named):
        if found.partition(".")[0] in _DANGEROUS and found not in _BUILTIN_DATA:
            raise CheckpointError(
                f"{name} wants to run code when it is opened ({quote(found)}), so it was refused "
                "and nothing was run; use the .safetensors version of it, and do not trust "
                "where this file came from."
            )


def _named_in_zip(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.filename.rpartition("/")[2] == "constants.pkl" for entry in entries):
            raise CheckpointError(f"{path.name} is a TorchScript program, not weights, so it was not loaded.")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise CheckpointError(
                f"{path.name} is a compressed archive, not a PyTorch checkpoint; unpack it first."
            )
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            raise CheckpointError(f"{path.name} is a zip archive without a PyTorch checkpoint in it.")
        if any(entry.file_size > MAX_PICKLE_BYTES for entry in pickles):
            raise _damaged(path.name)
        named: set[str] = set()
        for entry in pickles:
            _collect_named(io.BytesIO(archive.read(entry)), named)
        return named


def _named_in_legacy(path: Path) -> set[str]:
    named: set[str] = set()
    with path.open("rb") as file, contextlib.suppress(Exception):  # torch.load will tell of damage
        for _ in range(_LEGACY_PICKLES):
            _collect_named(file, named)
    return named


def _collect_named(stream: BinaryIO, named: set[str]) -> None:
    """Add the ``module.name`` of every object that one pickle looks up, by reading its opcodes."""
    pushed: list[str] = []  # strings, in the order of their use: the last two are what STACK_GLOBAL takes
    memo: dict[object, str] = {}
    last = ""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            named.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            named.add(".".join(pushed[-2:]))
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = last
        elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = last
        elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
            pushed.append(memo.get(argument, ""))
        last = ""
        if isinstance(argument, str) and opcode.name.endswith(("UNICODE", "UNICODE8", "STRING")):
            last = argument
            pushed.append(argument)


@contextlib.contextmanager
def _placeholders(named: set[str]) -> Iterator[None]:
    """Let ``torch.load`` take inert stand-ins for the bookkeeping in ``named``.

    Before PyTorch 2.5 there is no public way to name them; its table of known objects is extended for the
    while.
    """
    stand_ins = {name: _placeholder(name) for name in sorted(named) if _BOOKKEEPING.fullmatch(name)}
    with contextlib.ExitStack() as stack:
        if stand_ins:
            stack.enter_context(_globals_lock)  # both ways change a table that all threads share
            if hasattr(torch.serialization, "safe_globals"):
                stack.enter_context(torch.serialization.safe_globals(list(stand_ins.values())))
            else:
                table = torch._weights_only_unpickler._get_allowed_globals()
                for name in stand_ins.keys() - table.keys():
                    table[name] = stand_ins[name]
                    stack.callback(table.pop, name)
        yield


def _placeholder(name: str) -> type:
    """A class of this name that takes anything and does nothing.

    Every version of the unpickler fills in (BUILD, SETITEM) only objects of the types that it knows, hence
    what is made: an empty parameter for NumPy's objects, whose state it then ignores, and a dict for all the
    others.
    """
    module, _, short = name.rpartition(".")

    def make(cls: type, *_: object) -> object:
        if module.startswith("numpy"):
            empty = torch.nn.Parameter(torch.empty(0), requires_grad=False)
            vars(empty)["__setstate__"] = lambda state: None
            return empty
        return OrderedDict()

    return type(short, (), {"__module__": module, "__new__": make})


def _tensors(loaded: Any, name: str) -> dict[str, torch.Tensor]:
    """The state dict in what was loaded, however it is wrapped; entries that are no tensors are left out."""
    for _ in range(len(_NESTED)):
        inner = next((loaded[key] for key in _NESTED if isinstance(loaded, Mapping) and key in loaded), None)
        if not isinstance(inner, Mapping):
            break
        loaded = inner
    if isinstance(loaded, Mapping):
        if "string_to_param" in loaded:
            raise CheckpointError(f"{name} is a textual inversion embedding, not a VAE.")
        found = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
        if found:
            return found
    raise CheckpointError(f"{name} holds no tensors, so it is not a VAE.")
