"""Exact decoding and encoding under any memory budget: the engine, its planner, and the ladder of fallbacks."""

from vae_lib.decode.calibrate import rates_for
from vae_lib.decode.compute import Compute, Operation
from vae_lib.decode.devices import choose_device, free_bytes, free_memory, total_memory, usual_dtype
from vae_lib.decode.engine import decode, encode_moments
from vae_lib.decode.failures import is_out_of_memory
from vae_lib.decode.ladder import Ladder
from vae_lib.decode.measure import PeakMemory
from vae_lib.decode.outcome import Outcome
from vae_lib.decode.padding import Edge, Padding
from vae_lib.decode.plan import (
    DEFAULT_ORDER,
    DTYPES,
    UNLIMITED,
    Plan,
    Rates,
    Work,
    candidates,
    choose,
    dtype_name,
    smallest,
)
from vae_lib.decode.program import Tiling
from vae_lib.decode.route import Route
from vae_lib.decode.search import Preference, Step
from vae_lib.decode.trust import trusted_rates

__all__ = [
    "DEFAULT_ORDER",
    "DTYPES",
    "UNLIMITED",
    "Compute",
    "Edge",
    "Ladder",
    "Operation",
    "Outcome",
    "Padding",
    "PeakMemory",
    "Plan",
    "Preference",
    "Rates",
    "Route",
    "Step",
    "Tiling",
    "Work",
    "candidates",
    "choose",
    "choose_device",
    "decode",
    "dtype_name",
    "encode_moments",
    "free_bytes",
    "free_memory",
    "is_out_of_memory",
    "rates_for",
    "smallest",
    "total_memory",
    "trusted_rates",
    "usual_dtype",
]
