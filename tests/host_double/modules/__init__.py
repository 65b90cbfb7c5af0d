"""A stand-in for the `modules` package of stable-diffusion-webui v1.10.1.

Same names, signatures and order of calls as far as an extension can see them, written for these tests from
the host's public behaviour. Sampling is seeded noise without a UNet; the VAE is real, only narrow.
"""
