"""Reading PyTorch's pickled checkpoints (.pt, .pth, .ckpt, .bin) without running anything that they contain.

The gate is ``torch.load(weights_only=True)``, which knows tensors and containers and nothing else. Before
it, the pickle's opcodes are followed (not executed) to learn which Python objects it names and calls. Three
things follow: what would take all memory or time is refused (see ``pickle_scan``), a refusal can say what the
file asked for, and the bookkeeping that old PyTorch Lightning checkpoints carry beside their weights (callback
classes, NumPy scalars) is read as inert placeholders; the real classes are never imported.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import io
import re
import tarfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from vae_lib.checkpoints import pickle_protocol
from vae_lib.checkpoints.header import Header, TensorInfo, quote
from vae_lib.checkpoints.pickle_scan import Scan
from vae_lib.device import kinds
from vae_lib.errors import CheckpointError

MAX_PICKLE_BYTES = 8_000_000  # those of whole checkpoints have one; each byte may cost a list, and time
MAX_EXPANDED_BYTES = 64 << 20  # of a tensor that repeats its numbers
_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, the storages' keys; raw bytes follow
_globals_lock = threading.RLock()
# Where training scripts keep the weights, the likeliest first.
_NESTED = (
    "state_dict", "model_state_dict", "model", "module", "params_ema", "params", "generator", "vae", "autoencoder",
    "net", "network", "weights", "ema",
)  # fmt: skip
_MOST_NESTED = 4

# Modules with which a pickle can run programs, reach files or the network, or look further objects up.
_DANGEROUS = frozenset(
    """
    os posix nt ntpath posixpath subprocess sys builtins __builtin__ importlib runpy shutil socket pty
    platform commands popen2 pickle _pickle code codeop ctypes webbrowser asyncio multiprocessing threading
    http urllib requests httplib ftplib smtplib tempfile pip pdb bdb timeit cProfile profile trace doctest
    operator _operator functools types marshal inspect site signal glob fileinput linecache pydoc
    """.split()  # noqa: SIM905 - a list of fifty quoted names reads worse
)
# What builtins make: values, which cannot act. (``type`` and ``getattr`` could.)
_BUILTIN_VALUES = (
    r"(builtins|__builtin__)\."
    r"(list|dict|tuple|set|frozenset|complex|int|long|float|bool|str|unicode|bytes|object|slice|x?range)"
)
# Training bookkeeping: never needed to read the weights, so placeholders do.
_BOOKKEEPING = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\..+|argparse\.Namespace|typing\.\w+|_codecs\.encode"
    r"|numpy\.(dtype|ndarray|float\d+|int\d+|bool_?|_?core\.multiarray\.(scalar|_reconstruct))"
    r"|collections\.(defaultdict|deque|Counter)|(pathlib(\._local)?|datetime)\.\w+|(copyreg|copy_reg)\._reconstructor|"
    + _BUILTIN_VALUES
)
# What torch.load(weights_only=True) takes by itself; only used to word a refusal.
_WEIGHTS = re.compile(
    r"collections\.OrderedDict"
    r"|torch\.(\w+|serialization\._get_layout|_utils\._rebuild_\w+|nn\.parameter\.Parameter|storage\.\w+|_tensor\.\w+)"
)
# What weights call. The classes of tensors, which torch.load would call too, make any size out of a number.
_CALLS = re.compile(
    _BOOKKEEPING.pattern + r"|collections\.OrderedDict"
    r"|torch\.(Size|device|serialization\._get_layout|nn\.parameter\.Parameter)"
    r"|torch\.(_utils\._rebuild_\w+|_tensor\._rebuild_from_type_v2)"
)
# Byte arrays are values too, but torch makes them itself, of any size: they are not called.
_BUILTIN_DATA = re.compile(_BUILTIN_VALUES + r"|(builtins|__builtin__)\.bytearray")


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
        size = path.stat().st_size
        self._tensors = _tensors(load_pickle(path), path.name)
        plain = [tensor.untyped_storage() for tensor in self._tensors.values() if _is_plain(tensor)]
        # a tensor that is larger than its storage makes the storage grow
        if sum({storage.data_ptr(): storage.nbytes() for storage in plain}.values()) > size:
            raise _damaged(path.name)
        tensors = {
            name: TensorInfo(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        }
        self.header = Header(path, "pickle", size, {}, tensors)

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
        return plain_copy(self._tensors[name], self.header.path.name, quote(name))


def plain_copy(tensor: torch.Tensor, file: str, name: str) -> torch.Tensor:
    """A tensor in memory of its own. An expanded one is written out, up to 64 MiB.

    Raises:
        CheckpointError: when it is not a plain tensor of its own data, or would be larger.
    """
    size = tensor.numel() * tensor.element_size()
    # a stride of 0 makes a tensor of any size out of one number: a copy must not follow it everywhere
    if not _is_plain(tensor) or size > max(tensor.untyped_storage().nbytes(), MAX_EXPANDED_BYTES):
        raise CheckpointError(f"{file} is damaged: {name} is not a plain tensor.")
    return torch.Tensor.detach(tensor).clone(memory_format=torch.contiguous_format)


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and kinds.of(tensor.device).in_main_memory and not tensor.is_quantized


def load_pickle(path: Path) -> Any:
    """What a pickle of tensors and containers holds; nothing else of it is built, and nothing is run.

    Raises:
        CheckpointError: when it is damaged, or names other objects.
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP_MAGIC
    scan = Scan()
    failure: Exception | None = None
    try:
        (_scan_zip if is_zip else _scan_legacy)(path, scan)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files fail in many ways, all of them meaning the same
        failure = error
    _refuse_code(scan.named, path.name)
    if uncalled := sorted(name for name in scan.called if not _CALLS.fullmatch(name)):
        raise _not_weights(uncalled[0], path.name)
    if failure is None:
        try:
            return _loaded(path, scan, is_zip)
        except Exception as error:
            failure = error
    others = sorted(name for name in scan.named if not (_WEIGHTS.fullmatch(name) or _BUILTIN_DATA.fullmatch(name)))
    raise _not_weights(others[0], path.name) if others else _damaged(path.name) from failure


def _loaded(path: Path, scan: Scan, is_zip: bool) -> Any:
    """What is in a file that was found harmless. Newer protocols are rewritten to the one that the gate knows."""
    if pickle_protocol.protocol_of(path, is_zip=is_zip) > 2:
        named = scan.named | {pickle_protocol.BYTES_BY}
        return _through_the_gate(pickle_protocol.rewritten(path, is_zip=is_zip), named, mapped=False)
    # Mapped where the format allows it: then only the tensors that are used are read. Where mapping fails
    # (some network drives, some versions of torch), read whole.
    if is_zip:
        with contextlib.suppress(Exception):
            return _through_the_gate(str(path), scan.named, mapped=True)
    # A file object where it can be: newer versions of torch go by the ending of a name.
    with path.open("rb") as file:
        return _through_the_gate(file, scan.named, mapped=False)


def _through_the_gate(source: Any, named: set[str], *, mapped: bool) -> Any:
    with _placeholders(named):
        # Not torch.load, which the WebUI replaces by one that refuses the files of newer versions of torch.
        return torch.serialization.load(source, map_location="cpu", weights_only=True, mmap=mapped)


def _damaged(name: str) -> CheckpointError:
    return CheckpointError(f"{name} is damaged or cut short; download or copy it again.")


def _torch_script(name: str) -> CheckpointError:
    return CheckpointError(f"{name} is a TorchScript program, not weights, so it was not loaded.")


def _not_weights(found: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} contains a Python object that is not weights ({quote(found)}) and cannot be "
        "read safely, so it was refused; use the .safetensors version of it."
    )


def _refuse_code(named: set[str], name: str) -> None:
    for found in sorted(named):
        if found.partition(".")[0] in _DANGEROUS and not _BUILTIN_DATA.fullmatch(found):
            raise CheckpointError(
                f"{name} wants to run code when it is opened ({quote(found)}), so it was refused "
                "and nothing was run; use the .safetensors version of it, and do not trust "
                "where this file came from."
            )


def _scan_zip(path: Path, scan: Scan) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise _torch_script(path.name)
    # torch.save compresses nothing, and a few bytes of an archive can stand for as many gigabytes
    if (
        any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or sum(entry.file_size for entry in entries) > path.stat().st_size
    ):
        raise CheckpointError(f"{path.name} is a compressed archive, not a PyTorch checkpoint; unpack it first.")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path.name} is a zip archive without a PyTorch checkpoint in it.")
    sizes = {entry.filename.partition("/")[2]: entry.file_size for entry in entries}
    if sizes["data.pkl"] > MAX_PICKLE_BYTES:
        raise ValueError("the pickle is too long")
    # torch's own reader from here on: two readers may understand one archive differently
    with path.open("rb") as file:
        reader = torch._C.PyTorchFileReader(file)
        if "constants.pkl" in reader.get_all_records():
            raise _torch_script(path.name)
        scan.read(io.BytesIO(reader.get_record("data.pkl")))
    # older versions of torch believe the pickle, and read beyond the record's end
    if any(claimed > sizes[f"data/{key}"] for key, claimed in _claimed(scan).items()):
        raise ValueError("a storage is larger than its record")


def _claimed(scan: Scan) -> dict[Any, int]:
    """Bytes of each storage, as the pickles have it."""
    claimed: dict[Any, int] = {}
    for _, kind, key, _, count, *_ in scan.storages:
        claimed[key] = max(count * _itemsize(kind), claimed.get(key, 0))
    return claimed


def _itemsize(kind: str) -> int:
    """Bytes per element of a storage's class, such as ``torch.FloatStorage``."""
    dtypes = torch.storage._storage_type_to_dtype_map()
    return int(dtypes.get(kind.rpartition(".")[2], torch.uint8).itemsize)


def _scan_legacy(path: Path, scan: Scan) -> None:
    if tarfile.is_tarfile(path):  # the form before this one, which older versions of torch unpack to read it
        raise ValueError("a tar archive")
    with path.open("rb") as file:
        pickles = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    for _ in range(_LEGACY_PICKLES):
        scan.read(pickles)
    if sum(_claimed(scan).values()) > path.stat().st_size:
        raise ValueError("the storages are larger than the file")


@contextlib.contextmanager
def _placeholders(named: set[str]) -> Iterator[None]:
    """Let ``torch.load`` take inert stand-ins for the bookkeeping in ``named``.

    Before PyTorch 2.5 there is no public function to name them; its table of known objects is extended for the
    while.
    """
    names = {name for name in named if _BOOKKEEPING.fullmatch(name)}
    # newer versions of torch look for the names that Python 2's have today
    stand_ins = {name: _placeholder(name) for name in sorted(names | set(map(_renamed, names)))}
    with contextlib.ExitStack() as stack:
        if stand_ins:
            stack.enter_context(_globals_lock)  # both of them change a table that all threads share
            if hasattr(torch.serialization, "safe_globals"):
                stack.enter_context(torch.serialization.safe_globals(list(stand_ins.values())))
            else:
                table = torch._weights_only_unpickler._get_allowed_globals()
                for name in stand_ins.keys() - table.keys():
                    table[name] = stand_ins[name]
                    stack.callback(table.pop, name)
        yield


def _renamed(name: str) -> str:
    """Python 3's name of an object that a pickle of protocol 2 calls by Python 2's."""
    module, _, short = name.rpartition(".")
    if (module, short) in _compat_pickle.NAME_MAPPING:
        return ".".join(_compat_pickle.NAME_MAPPING[module, short])
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{short}"


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
        if short == "deque":
            return []
        return OrderedDict()

    return type(short, (), {"__module__": module, "__new__": make})


def _tensors(loaded: Any, name: str) -> dict[str, torch.Tensor]:
    """The state dict in what was loaded, however it is wrapped; entries that are no tensors are left out."""
    if isinstance(loaded, dict) and dict.__contains__(loaded, "string_to_param"):
        raise CheckpointError(f"{name} is a textual inversion embedding, not a VAE.")
    if found := _named_tensors(loaded, _MOST_NESTED):
        return found
    if isinstance(loaded, torch.Tensor) or (isinstance(loaded, (list, tuple)) and loaded):
        shape = f", of shape {tuple(loaded.shape)}" if isinstance(loaded, torch.Tensor) else ""
        what = "one tensor" if shape else "a list"
        raise CheckpointError(f"{name} holds {what} without names{shape}: latents, perhaps, but not a VAE.")
    raise CheckpointError(f"{name} holds no tensors, so it is not a VAE.")


def _named_tensors(loaded: Any, depth: int) -> dict[str, torch.Tensor]:
    """Those in the likeliest of the nested dicts that have any, else those of the dict itself."""
    if not isinstance(loaded, dict):
        return {}
    # the classes' own methods: a pickle can put anything in the place of an object's
    for key in _NESTED if depth else ():
        if found := _named_tensors(dict.get(loaded, key), depth - 1):
            return found
    return {
        str(key): torch.Tensor.detach(value)
        for key, value in dict.items(loaded)
        if isinstance(value, torch.Tensor) and not value.is_nested
    }
