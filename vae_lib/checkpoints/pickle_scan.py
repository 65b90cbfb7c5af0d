"""What a pickle would do, read from its opcodes: nothing is looked up, called or built.

The unpickler of ``torch.load(weights_only=True)`` runs no code of the file, but it calls what it knows with
any arguments and takes any keys. A hundred bytes are then enough to ask for 2^40 steps or bytes, so what
``torch.save`` never writes is found here beforehand.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_MOST_LEAVES = 10**7  # of a tuple; those of shared tuples count each time, as they do for its hash
_TEXT = ("UNICODE", "UNICODE8", "STRING")
_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_LATIN = ("latin1", "latin-1")  # NumPy's bytes; other codecs make text longer, again and again


class Named(str):
    """The ``module.name`` of an object that a pickle looks up."""


@dataclass(frozen=True, eq=False)
class _Tuple:
    items: tuple[Any, ...]
    leaves: int


@dataclass
class Scan:
    """What the pickles of a file look up, what of that they call, and the storages that they ask for."""

    named: set[str] = field(default_factory=set)
    called: set[str] = field(default_factory=set)
    storages: list[tuple[Any, ...]] = field(default_factory=list)

    def read(self, stream: BinaryIO) -> None:
        """Follow one pickle.

        Raises:
            ValueError, IndexError, KeyError: when it is damaged, or asks for what weights never need.
        """
        stack: list[Any] = []
        marks: list[list[Any]] = []
        memo: dict[object, Any] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name == "MARK":
                marks.append(stack)
                stack = []
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            else:
                before = opcode.stack_before
                taken: list[Any] = []
                if pickletools.markobject in before:
                    taken, stack = stack, marks.pop()
                    before = before[: before.index(pickletools.markobject)]
                if before:
                    taken = stack[-len(before) :] + taken
                    if len(taken) < len(before):
                        raise IndexError("the stack is too short")
                    del stack[-len(before) :]
                if opcode.stack_after:
                    made = self._result(name, argument, taken)
                    stack += [taken[0], made] if name == "DUP" else [made]

    def _result(self, opcode: str, argument: Any, taken: list[Any]) -> Any:
        """What an opcode leaves on the stack, as far as it is of interest; otherwise None."""
        if opcode.startswith(("APPEND", "SETITEM", "ADDITEMS", "BUILD", "DUP")):
            return taken[0]
        if opcode.endswith("TUPLE") or opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            leaves = 1 + sum(item.leaves if isinstance(item, _Tuple) else 1 for item in taken)
            if leaves > _MOST_LEAVES:
                raise ValueError("tuples of tuples of tuples")
            return _Tuple(tuple(taken), leaves)
        if opcode.endswith(_TEXT) or opcode in _INTEGERS:
            return argument
        if opcode in ("GLOBAL", "STACK_GLOBAL", "INST"):
            found = Named(".".join(map(str, taken)) if opcode == "STACK_GLOBAL" else str(argument).replace(" ", "."))
            self.named.add(found)
            if opcode == "INST":
                self._call(found, ())
            return found
        if opcode in ("REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"):
            self._call(taken[0], taken[1].items if isinstance(taken[1], _Tuple) else ())
        elif opcode == "BINPERSID" and isinstance(taken[0], _Tuple):
            self.storages.append(taken[0].items)
        return None

    def _call(self, function: Any, arguments: tuple[Any, ...]) -> None:
        if not isinstance(function, Named):
            raise ValueError("what is called is not an object by its name")
        self.called.add(function)
        if function == "_codecs.encode" and (len(arguments) != 2 or arguments[1] not in _LATIN):
            raise ValueError("an encoding that makes text longer")
        if function == "torch._tensor._rebuild_from_type_v2" and arguments:  # calls its first argument
            self._call(arguments[0], arguments[2].items if isinstance(arguments[2], _Tuple) else ())
