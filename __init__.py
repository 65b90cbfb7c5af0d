"""What ComfyUI loads: two nodes. Wherever else this is imported it does nothing, and the WebUIs never look at it."""

import sys
from pathlib import Path
from typing import Any

NODE_CLASS_MAPPINGS: dict[str, Any] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

if "comfy.model_management" in sys.modules:
    sys.path.append(str(Path(__file__).parent))
    from vae_lib import comfyui

    NODE_CLASS_MAPPINGS |= comfyui.NODE_CLASS_MAPPINGS
    NODE_DISPLAY_NAME_MAPPINGS |= comfyui.NODE_DISPLAY_NAME_MAPPINGS
