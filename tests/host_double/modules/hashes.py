import hashlib
from pathlib import Path


def sha256(filename, title, use_addnet_hash=False):
    return hashlib.sha256(Path(filename).read_bytes()).hexdigest()
