"""Arrays that are counted instead of computed: the planner runs the engine's own passes on them.

A `Counted` has a shape, a dtype and a storage whose bytes live as long as Python holds an array over it, as PyTorch's
do; PyTorch's functions accept it (the ``__torch_function__`` protocol) and are looked up in `RULES`, which
`counted_functions` fills. What they would
have dispatched, multiplied, read and written is added up by a `Meter`. Nothing has values.

This is PyTorch's meta device, a few functions wide and fifty times as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from vae_lib.device import kernels, kinds
from vae_lib.device.kind import Allocator

DEVICE, HOST, OUTSIDE = "device", "host", "outside"  # where a storage lies; OUTSIDE: not ours, or a file
Shape = tuple[int, ...]
Shape4 = tuple[int, int, int, int]
RULES: dict[Any, Callable[..., Any]] = {}  # what stands for a function of PyTorch's


@dataclass
class Meter:
    """What has been counted. Work done while ``repeats`` is n counts n times; memory does not."""

    device: torch.device
    repeats: int = 1
    live: int = field(init=False)
    peak: int = field(init=False)
    host_live: int = 0
    host_peak: int = 0
    dispatches: int = 0
    multiplications: int = 0
    moved: int = 0
    transferred: int = 0
    largest: int = 0  # array on the device
    channels_last: bool = True  # the pictures' layout; else PyTorch's usual one
    _copies: bool | None = None

    def __post_init__(self) -> None:
        self._allocator = kinds.of(self.device).allocator or Allocator()
        self._unsplit = self._allocator.unsplit
        self.live = self.peak = self._allocator.rest

    @property
    def needed(self) -> int:
        """Bytes that must be free for the peak."""
        return self.peak + min(self._allocator.left_over, self.largest // 4)

    def held(self, size: int) -> int:
        """What the allocator counts for an array of so many bytes.

        Most hold nothing unsplit: on a real card it was nothing for pictures of 512 and 1024, and a quarter of what it
        may be for odd sizes.
        """
        return size + self._unsplit // 4 if size > self._unsplit else size

    def allocate(self, size: int, place: str, count: int = 1) -> None:
        if place == DEVICE:
            self.largest = max(self.largest, size)
            self.live += count * self.held(size)
            if self.live > self.peak:
                self.peak = self.live
        elif place == HOST:
            self.host_live += count * size
            self.host_peak = max(self.host_peak, self.host_live)

    def free(self, size: int, place: str, count: int = 1) -> None:
        if place == DEVICE:
            self.live -= count * self.held(size)
        elif place == HOST:
            self.host_live -= count * size

    def convolution_copies(self, dtype: torch.dtype) -> bool:
        """Asked for once: a device without the memory to find out would be asked again and again."""
        if self._copies is None:
            self._copies = kernels.convolution_copies(self.device, dtype, self.channels_last)
        return self._copies

    def counts(self) -> tuple[int, ...]:
        """What adds up."""
        return self.dispatches, self.multiplications, self.moved, self.transferred

    def add(self, counts: list[int], times: int) -> None:
        dispatches, multiplications, moved, transferred = counts
        self.dispatches += times * dispatches
        self.multiplications += times * multiplications
        self.moved += times * moved
        self.transferred += times * transferred

    def transient(self, size: int) -> None:
        """Bytes that an operation takes and gives back."""
        self.peak = max(self.peak, self.live + size)

    def did(self, *touched: Any, multiplications: int = 0) -> None:
        """One operation, and the arrays that it read or wrote: moved, or transferred if they are the host's."""
        repeats = self.repeats
        self.dispatches += repeats
        self.multiplications += repeats * multiplications
        for array in touched:
            if type(array) is Counted:
                if array.storage.place is HOST:
                    self.transferred += repeats * array.nbytes
                else:
                    self.moved += repeats * array.nbytes


class Storage:
    """The bytes of an array, or of ``count`` arrays alike."""

    __slots__ = ("count", "meter", "place", "size")

    def __init__(self, meter: Meter, size: int, place: str, count: int = 1) -> None:
        self.meter, self.size, self.place, self.count = meter, size, place, count
        meter.allocate(size, place, count)

    def shrink(self, count: int) -> None:
        """Free all but ``count``."""
        self.meter.free(self.size, self.place, self.count - count)
        self.count = count

    def __del__(self) -> None:
        self.meter.free(self.size, self.place, self.count)


class Counted:
    """An array without values."""

    __slots__ = ("_nbytes", "dtype", "meter", "shape", "storage")
    requires_grad = False

    def __init__(self, shape: Shape, dtype: torch.dtype, storage: Storage, nbytes: int = -1) -> None:
        self.shape, self.dtype, self.storage, self.meter = shape, dtype, storage, storage.meter
        self._nbytes = nbytes  # -1: not asked for yet

    @classmethod
    def new(cls, meter: Meter, shape: Shape, dtype: torch.dtype, place: str = DEVICE) -> Counted:
        size = math.prod(shape) * dtype.itemsize
        return cls(shape, dtype, Storage(meter, size, place), size)

    def pile(self, count: int) -> Counted:
        """One that stands for so many more of its kind, for which nothing is counted but their memory."""
        storage = Storage(self.meter, min(self.nbytes, self.storage.size), self.storage.place, count)
        return Counted(self.shape, self.dtype, storage, self.nbytes)

    def like(self, shape: Shape, dtype: torch.dtype | None = None) -> Counted:
        """A fresh array on the device."""
        return Counted.new(self.meter, shape, dtype or self.dtype)

    @property
    def nbytes(self) -> int:
        if self._nbytes < 0:
            self._nbytes = math.prod(self.shape) * self.dtype.itemsize
        return self._nbytes

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def device(self) -> torch.device:
        return self.meter.device if self.storage.place == DEVICE else torch.device("cpu")

    def numel(self) -> int:
        return math.prod(self.shape)

    # views: each is a dispatch

    def _view(self, shape: Shape) -> Counted:
        self.meter.dispatches += self.meter.repeats
        return Counted(shape, self.dtype, self.storage)

    def narrow(self, dim: int, start: int, length: int) -> Counted:
        shape = self.shape
        assert 0 <= start <= start + length <= shape[dim], (shape, dim, start, length)
        return self._view((*shape[:dim], length, *shape[dim + 1 :]))

    def view(self, *shape: Any) -> Counted:
        shape = shape if isinstance(shape[0], int) else tuple(shape[0])
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(self.numel() // known if side == -1 else side for side in shape)
        assert math.prod(shape) == self.numel(), (self.shape, shape)
        return self._view(shape)

    def permute(self, *dims: int) -> Counted:
        return self._view(tuple(self.shape[d] for d in dims))

    def expand(self, *shape: int) -> Counted:
        return self._view(shape)

    def as_strided(self, shape: Shape, strides: Shape, offset: int = 0) -> Counted:
        return self._view(tuple(shape))

    def select(self, dim: int, index: int) -> Counted:
        return self._view(self.shape[:dim] + self.shape[dim + 1 :])

    def transpose(self, a: int, b: int) -> Counted:
        shape = list(self.shape)
        shape[a], shape[b] = shape[b], shape[a]
        return self._view(tuple(shape))

    def __getitem__(self, index: Any) -> Counted:
        shape: list[int] = []
        index = index if isinstance(index, tuple) else (index,)
        for side, at in zip(self.shape, index, strict=False):
            if isinstance(at, slice):
                shape.append(len(range(*at.indices(side))))
        self.meter.dispatches += self.meter.repeats * (len(index) - 1)
        return self._view((*shape, *self.shape[len(index) :]))

    def stride(self, dim: int) -> int:
        return 0  # who asks only makes views with it

    def is_contiguous(self, memory_format: torch.memory_format) -> bool:
        return True

    def t(self) -> Counted:
        return self._view(self.shape[::-1])

    @property
    def mT(self) -> Counted:
        return self.transpose(-2, -1)

    def unbind(self, dim: int) -> list[Counted]:
        self.meter.did()
        rest = self.shape[:dim] + self.shape[dim + 1 :]
        return [Counted(rest, self.dtype, self.storage) for _ in range(self.shape[dim])]

    def chunk(self, count: int, dim: int) -> list[Counted]:
        """Into equal parts."""
        dim %= self.ndim
        self.meter.did()
        part = (*self.shape[:dim], self.shape[dim] // count, *self.shape[dim + 1 :])
        return [Counted(part, self.dtype, self.storage) for _ in range(count)]

    # copies

    def _copied(self, dtype: torch.dtype | None = None) -> Counted:
        result = self.like(self.shape, dtype)
        self.meter.did(self, result)
        return result

    def clamp(self, low: float, high: float) -> Counted:
        return self._copied()

    def to(self, *wanted: torch.device | torch.dtype) -> Counted:
        dtype = next((w for w in wanted if isinstance(w, torch.dtype)), self.dtype)
        if any(isinstance(w, torch.device) and w != self.meter.device for w in wanted):
            return Counted.new(self.meter, self.shape, dtype, OUTSIDE)
        return self if dtype == self.dtype else self._copied(dtype)

    def float(self) -> Counted:
        return self.to(torch.float32)

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Counted:
        """The engine asks for this where the layout is another one, so that it is a copy."""
        return self._copied()

    def reshape(self, *shape: int) -> Counted:
        """The same."""
        size = self.numel()
        known = -math.prod(shape) if -1 in shape else 1
        return self._copied().view(*(size // known if side == -1 else side for side in shape))

    def copy_(self, source: Counted, non_blocking: bool = False) -> Counted:
        ends = [end for end in (self, source) if end.storage.place == HOST] or [self, source]
        self.meter.did(*ends)
        return self

    # fresh arrays

    def new_empty(self, *shape: Any, dtype: torch.dtype | None = None) -> Counted:
        self.meter.did()
        return self.like(shape if isinstance(shape[0], int) else tuple(shape[0]), dtype)

    def new_zeros(self, *shape: Any, dtype: torch.dtype | None = None) -> Counted:
        return self.new_empty(*shape, dtype=dtype)

    def new_full(self, shape: Shape, value: Any, dtype: torch.dtype | None = None) -> Counted:
        return self.new_empty(tuple(shape), dtype=dtype)

    # arithmetic

    def _in_place(self, *others: Any) -> Counted:
        self.meter.did(self, self, *others)
        return self

    zero_ = fill_ = add_ = sub_ = mul_ = div_ = exp_ = square_ = pow_ = rsqrt_ = neg_ = _in_place

    def clamp_(self, **_: Any) -> Counted:
        return self._in_place()

    def addcmul_(self, a: Counted, b: Counted) -> Counted:
        return self._in_place(a, b)

    def _elementwise(self, other: Any = 0.0, *_: Any) -> Counted:
        dtype, shape = self.dtype, self.shape
        if isinstance(other, Counted):
            shape = _broadcast(shape, other.shape)
            dtype = torch.promote_types(dtype, other.dtype)
        result = self.like(shape, dtype)
        self.meter.did(self, other, result)
        return result

    __add__ = __sub__ = __mul__ = __truediv__ = pow = rsqrt = neg = _elementwise

    def _reduced(self, dim: int | Shape, keepdim: bool = False, dtype: Any = None, **_: Any) -> Counted:
        dims = {d % self.ndim for d in ((dim,) if isinstance(dim, int) else dim)}
        shape = tuple(1 if d in dims else side for d, side in enumerate(self.shape) if keepdim or d not in dims)
        result = self.like(shape, dtype)
        self.meter.did(self, result)
        return result

    sum = amax = mean = _reduced

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return RULES[function](*args, **(kwargs or {}))


def _broadcast(a: Shape, b: Shape) -> Shape:
    if a == b:
        return a
    a, b = sorted((a, b), key=len)
    return tuple(max(sides) for sides in zip((1,) * (len(b) - len(a)) + a, b, strict=True))
