"""VAE Guard inside the WebUI: the only package that knows the host's ``modules``."""

from vae_lib.webui.extension import start, stop
from vae_lib.webui.panel import VAEGuardScript

__all__ = ["VAEGuardScript", "start", "stop"]
