import vae_object

from ldm_patched.modules import model_management


class VAE(vae_object.VAE):
    management = model_management
