"""What an exception of PyTorch's says: that memory ran out, perhaps, that the device is gone, or something else.

The words differ by device, library and version; those here are from users' reports (``tests/device/failure_texts.json``
has each with the place where it was posted).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import Enum

import torch

from vae_lib.errors import VAEGuardError


class Failure(Enum):
    """Kinds of failure, the one that decides first where an exception wraps another."""

    DEVICE_LOST = "the device is lost"  # whatever is asked of it in this process fails: do not go on there
    OUT_OF_MEMORY = "out of memory"
    MAYBE_OUT_OF_MEMORY = "perhaps out of memory"  # such as a convolution without an engine: worth one smaller try
    OTHER = "another error"


class Answer(Enum):
    """What to do about an attempt that failed."""

    SAME_PLAN = "empty the cache and try the same plan once more"  # memory may have been there, but in pieces
    SMALLER_PLAN = "try a smaller plan"
    HAND_OVER = "our routes do not help: leave it to the host"
    GIVE_UP = "nothing more on this device"


def answer(failure: Failure, repeated: bool, has_cache: bool) -> Answer:
    """What to do next.

    Args:
        repeated: whether the same failure came before: when memory ran out, of this very plan; else of any.
        has_cache: whether PyTorch keeps freed memory on the device for itself, as it does but on CPUs.
    """
    if failure is Failure.OUT_OF_MEMORY:
        return Answer.SAME_PLAN if has_cache and not repeated else Answer.SMALLER_PLAN
    if failure is Failure.MAYBE_OUT_OF_MEMORY and not repeated:
        return Answer.SMALLER_PLAN
    return Answer.GIVE_UP if failure is Failure.DEVICE_LOST else Answer.HAND_OVER


# Parts of a message, in lower case. "triggered": CUDA ends all its errors with advice on device-side assertions.
_DEVICE_LOST = (
    "illegal memory access",
    "device-side assert triggered",
    "unspecified launch failure",
    "launch timed out and was terminated",
    "misaligned address",
    "illegal instruction was encountered",
    "uncorrectable ecc error",
    "error_device_lost",  # Level Zero (XPU)
    "getdeviceremovedreason",  # DXGI_ERROR_DEVICE_REMOVED in the words of a Windows of any language
    "dxgi_error_device_",
    "unknown error -2005270523",  # DXGI_ERROR_DEVICE_REMOVED, _HUNG and _RESET as signed numbers, as on WSL
    "unknown error -2005270522",
    "unknown error -2005270521",
)
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, HIP, MPS, XPU, NPU
    "out of device memory",
    "outofmemory",  # hipErrorOutOfMemory
    "alloc_failed",  # cuBLAS, cuDNN, hipBLAS
    "allocfailed",  # MIOpen
    "allocate memory",  # "can't", "cannot", "can NOT allocate memory block with size larger than 4GB"
    "not enough memory",
    "could not allocate",  # DirectML
    "allocation on device",
    "bad allocation",
    "bad_alloc",
    "failed to allocate",
    "invalid buffer size",  # MPS
    "insufficient memory",
    "out_of_device_memory",
    "out_of_host_memory",
    "out_of_resources",
    "allocation_failure",  # OpenCL's CL_MEM_OBJECT_ALLOCATION_FAILURE
    "allocation_failed",  # cuDNN 9
    "nvml_success == r",  # CUDA's allocator, asking the driver why it got no memory (as on MIG, Jetson)
    "posix_memalign",
    "error 1455",  # Windows: the paging file is too small
    "unknown error -2147024882",  # E_OUTOFMEMORY
)
_MAYBE_OUT_OF_MEMORY = (
    "unable to find an engine",
    "unable to find a valid cudnn algorithm",
    "no valid convolution algorithms",
    "no execution plans",
    "no valid engine configs",
    "no suitable algorithm was found",
    "cudnn_status_not_supported",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error",
    "pytorch_used_bytes",  # cudaMallocAsync's assertion while it looks for room for a convolution
    "expandable_segment_",  # an assertion after memory ran out, with expandable segments
    "cudnn_status_execution_failed",
    "cublas_status_not_initialized",
    "cublas_status_internal_error",
    "cublas_status_execution_failed",
    "miopenstatusunknownerror",
    "miopenstatusinternalerror",
    "could not create a primitive",  # oneDNN
    "could not execute a primitive",
    "larger than int_max",  # more elements than a kernel can count: bands have fewer
    "less than int_max",
    "32-bit index math",
    "canuse32bitindexmath",
    "32-bit iterator",  # MPS
    "failed to enqueue",  # XPU
)
_BY_TEXT = (
    (Failure.DEVICE_LOST, _DEVICE_LOST),
    (Failure.OUT_OF_MEMORY, _OUT_OF_MEMORY),
    (Failure.MAYBE_OUT_OF_MEMORY, _MAYBE_OUT_OF_MEMORY),
)
_NO_MEMORY = {errno.ENOMEM, 1455}  # 1455: Windows' ERROR_COMMITMENT_LIMIT


def judge(error: BaseException, handled: BaseException | None = None) -> Failure:
    """The kind of failure that an exception, or one that it wraps, tells of.

    Args:
        handled: what was being handled when the work began, if anything (``sys.exc_info()[1]`` at that point). Python
            links it to every error of the work; it says nothing of them.
    """
    kinds = {_judge_one(link) for link in _linked(error, handled)}
    return next((kind for kind in Failure if kind in kinds), Failure.OTHER)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says for sure that memory ran out, on any device."""
    return judge(error) is Failure.OUT_OF_MEMORY


def _linked(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that led to it, as a traceback would show them."""
    seen: set[int] = set() if handled is None else {id(handled)}
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        if isinstance(link, VAEGuardError) or not isinstance(link, Exception):
            return  # our own sentences, and the user's interrupts, mean what they say
        seen.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _judge_one(error: BaseException) -> Failure:
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return Failure.OUT_OF_MEMORY
    if isinstance(error, OSError) and {error.errno, getattr(error, "winerror", None)} & _NO_MEMORY:
        return Failure.OUT_OF_MEMORY
    if not isinstance(error, (RuntimeError, OSError)):
        return Failure.OTHER
    text = str(error).lower()
    return next((kind for kind, parts in _BY_TEXT if any(part in text for part in parts)), Failure.OTHER)
