"""A third extension, only for the tests: it changes layers of the VAE while a picture is made, as many others do."""

import gradio as gr
import torch
from modules import scripts, shared
from torch.nn import functional as F

CHANGES = ("none", "one axis", "reflect", "hook", "subclass")


def network():
    forge = getattr(shared.sd_model, "forge_objects", None)
    return forge.vae.first_stage_model if forge else shared.sd_model.first_stage_model


def convolutions():
    vae = network()
    halves = (vae.decoder, vae.encoder)
    return [layer for half in halves for layer in half.modules() if isinstance(layer, torch.nn.Conv2d)]


def tile_across(layer):
    """As asymmetric-tiling-sd-webui does."""

    def conv_forward(self, given, weight, bias):
        padded = F.pad(given, self.paddingX, mode=self.padding_modeX)
        padded = F.pad(padded, self.paddingY, mode=self.padding_modeY)
        return F.conv2d(padded, weight, bias, self.stride, (0, 0), self.dilation, self.groups)

    widths = layer._reversed_padding_repeated_twice
    layer.padding_modeX, layer.padding_modeY = "circular", "constant"
    layer.paddingX, layer.paddingY = (widths[0], widths[1], 0, 0), (0, 0, widths[2], widths[3])
    layer._conv_forward = conv_forward.__get__(layer)
    return lambda: vars(layer).pop("_conv_forward")


def reflect(layer):
    before, layer.padding_mode = layer.padding_mode, "reflect"
    return lambda: setattr(layer, "padding_mode", before)


def with_hook(layer):
    return layer.register_forward_hook(lambda module, inputs, result: result + 0.5 * result.flip(1)).remove


def as_another_class(layer):
    """As what adapters put in place of a layer."""
    own = type(layer)

    class Adapted(own):
        def forward(self, given):
            return super().forward(given) + 0.5 * super().forward(given.flip(1))

    layer.__class__ = Adapted
    return lambda: setattr(layer, "__class__", own)


class ChangedLayers(scripts.Script):
    undo = []  # noqa: RUF012

    def title(self):
        return "Probe's layers"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Dropdown(list(CHANGES), value="none", label="What is changed")]

    def process(self, p, change, *args):
        one = network().decoder.mid.block_1.conv1
        if change == "one axis":
            self.undo[:] = [tile_across(layer) for layer in convolutions()]
        elif change == "reflect":
            self.undo[:] = [reflect(layer) for layer in convolutions()]
        elif change == "hook":
            self.undo[:] = [with_hook(one)]
        elif change == "subclass":
            self.undo[:] = [as_another_class(one)]

    def postprocess(self, p, processed, *args):
        while self.undo:
            self.undo.pop()()
