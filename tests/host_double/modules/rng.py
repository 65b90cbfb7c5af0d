import torch


class ImageRNG:
    def __init__(self, shape, seeds, subseeds=None, subseed_strength=0.0, seed_resize_from_h=0, seed_resize_from_w=0):
        self.shape = tuple(map(int, shape))
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self.seeds = seeds

    def next(self):
        torch.manual_seed(int(self.seeds[-1]))  # the host, too, leaves the global generator at the seed
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in self.generators])
