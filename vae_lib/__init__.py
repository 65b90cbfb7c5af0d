"""VAE Guard: exact, memory-bounded VAE decoding for the Stable Diffusion WebUI."""

__version__ = "0.2.0"
