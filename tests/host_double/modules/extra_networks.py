import json
from pathlib import Path

from modules import errors


def get_user_metadata(filename, lister=None):
    """The JSON file that a person's notes on a checkpoint are kept in (description, preferred VAE, ...)."""
    path = Path(filename).with_suffix(".json") if filename else None
    try:
        return json.loads(path.read_text(encoding="utf8")) if path and path.exists() else {}
    except (OSError, ValueError) as error:
        errors.display(error, f"reading extra network user metadata from {path}")
        return {}
