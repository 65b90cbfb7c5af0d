"""Pickles of protocols 3 to 5 in the words of protocol 2, the only one that ``torch.load(weights_only=True)`` knows.

Opcodes are rewritten one by one; nothing is looked up, called or built, and what the result may do is for others to
judge (``pickle_scan``, and torch's own gate). Strings are written out again wherever they are used, because the names
of objects, which newer protocols take from the stack, have to stand in the opcode itself.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

_PUSHES_TEXT = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE")
_PUSHES_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_RECALL = ("GET", "BINGET", "LONG_BINGET")
_DROPPED = ("FRAME", "PROTO")
_NEWER = ("EMPTY_SET", "ADDITEMS", "FROZENSET", "NEWOBJ_EX", "BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER")
_LEGACY_PICKLES = 5

BYTES_BY = "_codecs.encode"  # what protocol 2 makes bytes with
MAX_BYTES = 4 << 30  # a file is rewritten in memory


def protocol_of(path: Path, *, is_zip: bool) -> int:
    """The protocol of a checkpoint's pickle.

    Raises:
        ValueError, KeyError, OSError: when there is none.
    """
    if is_zip:
        start = _pickle_in(path)[:2]
    else:
        with path.open("rb") as file:
            start = file.read(2)
    return start[1] if start[:1] == b"\x80" and len(start) == 2 else 0


def rewritten(path: Path, *, is_zip: bool) -> BinaryIO:
    """A checkpoint with its pickles in protocol 2.

    Raises:
        ValueError, IndexError, KeyError: when it is damaged, has what protocol 2 cannot say, or is too large.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError("the file is too large to be rewritten")
    result = io.BytesIO()
    if is_zip:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as copy:
            for entry in archive.infolist():
                is_pickle = entry.filename.rpartition("/")[2] == "data.pkl"
                copy.writestr(
                    entry.filename,
                    to_protocol_2(io.BytesIO(_pickle_in(path))) if is_pickle else archive.read(entry),
                )
    else:
        with path.open("rb") as file:
            stream = io.BytesIO(file.read())
        for _ in range(_LEGACY_PICKLES):
            result.write(to_protocol_2(stream))
        result.write(stream.read())
    result.seek(0)
    return result


def _pickle_in(path: Path) -> bytes:
    """As torch's own reader finds it, and what was looked through: another one may find another in an odd archive."""
    with path.open("rb") as file:
        return bytes(torch._C.PyTorchFileReader(file).get_record("data.pkl"))


def to_protocol_2(stream: BinaryIO) -> bytes:
    """One pickle, read up to its end, in protocol 2.

    Raises:
        ValueError, IndexError, KeyError: when it is damaged, or has what protocol 2 cannot say.
    """
    start = stream.tell()
    opcodes = list(pickletools.genops(stream))
    end = stream.tell()
    stream.seek(start)
    data = stream.read(end - start)
    written: list[bytes] = [b"\x80\x02"]
    texts: list[str | None] = [None]  # for each piece of ``written``: the string that it pushes
    memo: dict[int, str | None] = {}

    def write(piece: bytes, text: str | None = None) -> None:
        written.append(piece)
        texts.append(text)

    for index, (opcode, given, position) in enumerate(opcodes):
        assert position is not None
        argument: Any = given
        name = opcode.name
        if name in _DROPPED:
            continue
        if name in _NEWER:
            raise ValueError(f"{name} has no counterpart in protocol 2")
        if name in _PUSHES_TEXT:
            write(_text(argument), argument)
        elif name in _PUSHES_BYTES:
            write(
                f"c{BYTES_BY}\n".replace(".", "\n", 1).encode()
                + _text(argument.decode("latin1"))
                + _text("latin1")
                + b"\x86R"
            )
        elif name in _MEMO:
            key = len(memo) if name == "MEMOIZE" else argument
            memo[key] = texts[-1]
            if texts[-1] is None:
                write(b"r" + struct.pack("<I", key))
        elif name in _RECALL:
            text = memo[argument]
            write(_text(text), text) if text is not None else write(b"j" + struct.pack("<I", argument))
        elif name == "STACK_GLOBAL":
            module, attribute = texts[-2], texts[-1]
            if module is None or attribute is None or "\n" in module + attribute:
                raise ValueError("an object without a name")
            del written[-2:], texts[-2:]
            write(f"c{module}\n{attribute}\n".encode())
        else:
            following = opcodes[index + 1][2] if index + 1 < len(opcodes) else len(data) + start
            assert following is not None
            write(data[position - start : following - start])
    return b"".join(written)


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded
