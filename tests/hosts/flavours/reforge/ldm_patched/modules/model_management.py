"""Notes what it is asked for, and has room for three pictures of it."""

VAE_ALWAYS_TILED = False
asked: list = []


class OutOfMemory(Exception):
    pass


def load_models_gpu(models, memory_required=0):
    asked.append(memory_required)
