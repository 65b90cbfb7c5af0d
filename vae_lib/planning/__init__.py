"""What each route would take, and the choice among them."""

from vae_lib.planning.calibrate import rates_for
from vae_lib.planning.plan import (
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
from vae_lib.planning.route import Route
from vae_lib.planning.trust import trusted_rates

__all__ = [
    "DEFAULT_ORDER",
    "DTYPES",
    "UNLIMITED",
    "Plan",
    "Rates",
    "Route",
    "Work",
    "candidates",
    "choose",
    "dtype_name",
    "rates_for",
    "smallest",
    "trusted_rates",
]
