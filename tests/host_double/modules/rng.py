import torch


class ImageRNG:
    def __init__(
        self, shape, seeds, subseeds=None, subseed_strength=0.0, seed_resize_from_h=0, seed_resize_from_w=0
    ):
        self.shape = tuple(map(int, shape))
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def next(self):
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
