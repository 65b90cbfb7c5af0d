"""The host's soft inpainting in short: where the latents changed much, less of the original is laid over."""

import gradio as gr
import numpy as np
from modules import scripts
from PIL import Image, ImageChops


class Script(scripts.Script):
    def title(self):
        return "Soft Inpainting"

    def show(self, is_img2img):
        return scripts.AlwaysVisible if is_img2img else False

    def ui(self, is_img2img):
        return [gr.Checkbox(False, label="Soft inpainting")]

    def post_sample(self, p, ps, enabled):
        if not enabled or p.mask is None:
            return
        self.overlay_images = []
        for distance, overlay in zip((ps.samples - p.init_latent).norm(dim=1), p.overlay_images, strict=False):
            mask = Image.fromarray((255 / (1 + distance.cpu().numpy())).astype(np.uint8)).resize(overlay.size)
            softer = overlay.copy()
            softer.putalpha(ImageChops.multiply(overlay.getchannel("A"), mask))
            self.overlay_images.append(softer)

    def postprocess_maskoverlay(self, p, ppmo, enabled):
        if enabled and p.mask is not None:
            ppmo.overlay_image = self.overlay_images[ppmo.index]
