"""What the passes over one picture share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from vae_lib.engine.buffers import Memory, Store, rows_of
from vae_lib.engine.maps import Arrivals, FeatureMap
from vae_lib.engine.normalization import ChannelNormaliser, Normaliser, Statistics
from vae_lib.engine.padding import Padding
from vae_lib.networks import ChannelNorm, Norm


@dataclass
class Context:
    """What the passes over one picture, or one frame of a video, share. ``after_band`` is called after every band."""

    memory: Memory
    store: Store
    padding: Padding
    after_band: Callable[[], None]
    maps: dict[str, FeatureMap] = field(default_factory=dict)
    statistics: dict[str, Statistics] = field(default_factory=dict)
    _by_norm: dict[ChannelNorm, ChannelNormaliser] = field(default_factory=dict)  # of a few kB each

    def another(self) -> Context:
        """That of another frame of the same video."""
        return replace(self, maps={}, statistics={})

    def normaliser(self, norm: Norm, statistics: str, offset: Tensor | None) -> Normaliser | ChannelNormaliser:
        if not isinstance(norm, nn.GroupNorm):
            assert offset is None, "a bias cannot be left for later: the norm does not add up"
            if norm not in self._by_norm:
                self._by_norm[norm] = ChannelNormaliser.of(norm, self.memory)
            return self._by_norm[norm]
        return self.statistics[statistics].normaliser(norm, self.memory, offset)


def add_in_place(target: FeatureMap, stored: Arrivals, first: int, band: Tensor) -> None:
    """Add the stored rows from ``first`` on to the band, and the sum takes their place."""
    for row, piece in stored.pieces(first, first + band.shape[2]):
        rows_of(band, row - first, row - first + piece.shape[2]).add_(piece)
    target.write(first, band)
