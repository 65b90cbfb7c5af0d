"""The memory manager of Forge and its kin: notes what it is asked for."""

VAE_ALWAYS_TILED = False
asked: list = []


class OutOfMemory(Exception):
    pass


def vae_device():
    return "cpu"


def load_models_gpu(models, memory_required=0):
    asked.append(memory_required)
