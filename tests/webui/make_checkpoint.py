"""A small SD1 checkpoint for a real host, built with that host's own libraries and Python.

    WEBUI_PYTHON make_checkpoint.py WEBUI_DIR VAE.safetensors OUT.safetensors

The UNet is tiny and predicts no noise, and the text model says one thing for all texts, so the latents are the seed's
noise; the VAE is the one given. Beside the checkpoint goes the .yaml from which the host builds the model.
"""

import sys
from pathlib import Path

import torch

webui, vae_file, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
sys.path.insert(0, str(webui / "repositories" / "stable-diffusion-stability-ai"))

import pytorch_lightning.utilities.rank_zero  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

sys.modules.setdefault("pytorch_lightning.utilities.distributed", pytorch_lightning.utilities.rank_zero)
from ldm.util import instantiate_from_config  # noqa: E402

config = OmegaConf.load(webui / "configs" / "v1-inference.yaml")
parameters = config.model.params
parameters.unet_config.params.update(model_channels=32, num_res_blocks=1, channel_mult=[1, 2])
parameters.unet_config.params.update(attention_resolutions=[1, 2], num_heads=4)
vae = load_file(vae_file)
narrowest = vae["decoder.conv_out.weight"].shape[1]
sizes = [vae[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] // narrowest for level in range(4)]
parameters.first_stage_config.params.ddconfig.update(ch=narrowest, ch_mult=sizes, num_res_blocks=1)
OmegaConf.save(config, out.with_suffix(".yaml"))

parameters.cond_stage_config = "__is_unconditional__"
torch.manual_seed(1)
model = instantiate_from_config(config.model)
weights = model.state_dict()
weights = {name: value for name, value in weights.items() if not name.startswith("cond_stage_model.")}
weights |= {f"first_stage_model.{name}": value for name, value in vae.items()}
with torch.device("meta"):
    text_model = CLIPTextModel(CLIPTextConfig.from_pretrained("openai/clip-vit-large-patch14"))
for name, value in text_model.state_dict().items():
    if name.endswith("position_ids"):
        values = torch.arange(value.numel()).reshape(value.shape)
    else:  # every text means the same; not 0, because the host divides by the mean
        values = torch.full(value.shape, float(name.endswith("final_layer_norm.bias")), dtype=torch.float16)
    weights[f"cond_stage_model.transformer.{name}"] = values
save_file({name: value.contiguous() for name, value in weights.items()}, out)
