"""Lets a fork of the WebUI take the tests' small checkpoints; does nothing in A1111, which reads their .yaml.

Forge and reForge recognise a model by its tensors, know no UNet of 32 channels, and build every VAE full-size. Only the
sizes are changed here; all the code that runs is theirs.
"""

import importlib.util

CHANNELS = 32  # of the UNet, see make_checkpoint.py


def vae_size(weights):
    """Channels of each level, and residual blocks per level, of a VAE in the layout of ldm or of diffusers."""
    levels = {}
    for name, value in weights.items():
        part = name.split(".")
        if name.startswith(("encoder.down.", "encoder.down_blocks.")) and name.endswith("conv2.weight"):
            levels.setdefault(int(part[2]), []).append(value.shape[0])
    return [levels[level][0] for level in sorted(levels)], len(levels[0])


def admit(known):
    if known.unet_config["model_channels"] != CHANNELS:
        known.unet_config = {**known.unet_config, "model_channels": CHANNELS}


def reforge():
    from ldm_patched.modules import sd, supported_models

    admit(supported_models.SD15)
    if hasattr(sd.VAE, "of_any_size"):  # scripts are loaded anew with the page
        return
    init, build, size = sd.VAE.__init__, sd.AutoencoderKL, []

    def of_any_size(self, sd=None, *args, **kwargs):
        size[:] = vae_size(sd) if sd and "encoder.conv_in.weight" in sd else ()
        try:
            init(self, sd, *args, **kwargs)
        finally:
            size.clear()

    def sized(ddconfig, **kwargs):
        if size:
            widths, blocks = size
            of_first = [width // widths[0] for width in widths]
            ddconfig = {**ddconfig, "ch": widths[0], "ch_mult": of_first, "num_res_blocks": blocks}
        return build(ddconfig=ddconfig, **kwargs)

    sd.VAE.__init__, sd.VAE.of_any_size, sd.AutoencoderKL = of_any_size, True, sized


def forge():
    from backend import loader
    from backend.nn.vae import IntegratedAutoencoderKL as network
    from huggingface_guess import model_list

    admit(model_list.SD15)
    if hasattr(loader, "of_any_size"):
        return
    load, read = loader.load_huggingface_component, network.load_config

    def of_any_size(guess, component, library, kind, path, weights):
        if kind == "AutoencoderKL" and weights and "encoder.conv_in.weight" in weights:
            widths, blocks = vae_size(weights)

            def small(*args, **kwargs):
                return {**read(*args, **kwargs), "block_out_channels": widths, "layers_per_block": blocks}

            network.load_config = staticmethod(small)
        try:
            return load(guess, component, library, kind, path, weights)
        finally:
            network.load_config = read

    loader.load_huggingface_component, loader.of_any_size = of_any_size, True


if importlib.util.find_spec("ldm_patched") and importlib.util.find_spec("modules_forge"):
    reforge()
elif importlib.util.find_spec("huggingface_guess"):
    forge()
