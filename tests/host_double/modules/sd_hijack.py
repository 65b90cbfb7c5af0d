from torch import nn


class StableDiffusionModelHijack:
    def __init__(self):
        self.comments: list = []
        self.extra_generation_params: dict = {}
        self.layers: list = []
        self.circular_enabled = False

    def hijack(self, model):
        self.layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]

    def undo_hijack(self, model):
        self.apply_circular(False)
        self.layers = []

    def apply_circular(self, enable):
        """Seamless tiling: every convolution of the model pads with the opposite edge."""
        if self.circular_enabled != enable:
            self.circular_enabled = enable
            for layer in self.layers:
                layer.padding_mode = "circular" if enable else "zeros"

    def clear_comments(self):
        self.comments = []
        self.extra_generation_params = {}


model_hijack = StableDiffusionModelHijack()
