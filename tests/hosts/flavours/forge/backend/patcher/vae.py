import vae_object

from backend import memory_management


class VAE(vae_object.VAE):
    management = memory_management
