"""One decode or encode, by the best plan that fits and by the next one when that fails."""

from vae_lib.decode.ladder import Ladder
from vae_lib.decode.outcome import Outcome
