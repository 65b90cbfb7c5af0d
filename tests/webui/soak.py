"""Many generations of varying size and route in one host, and what grew meanwhile.

    python -m tests.webui.soak --generations 500

With WEBUI_DIR and WEBUI_PYTHON (see tests/webui/host.py) in a real WebUI.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.webui import host as hosts
from tests.webui.scenarios import HIRES, IMG2IMG, UPSCALER

MB = 10**6
ROUTES = ("Auto", "Full", "Tiled", "Tiled + RAM", "TAESD", "CPU")


def generations(count: int) -> Iterator[dict[str, Any]]:
    """Parameters of ``count`` generations: every route in turn, any size, some in batches, hires or img2img."""
    chosen = random.Random(0)
    for index in range(count):
        size = {"width": 8 * chosen.randint(8, 24), "height": 8 * chosen.randint(8, 24)}
        guard = [chosen.random() < 0.8, ROUTES[index % len(ROUTES)], chosen.choice([0, 0, 1000])]
        kind = chosen.choice(["txt2img", "txt2img", "batch", "hires", "img2img"])
        extra = {
            "txt2img": {},
            "batch": {"batch_size": 2},
            "hires": {**HIRES, "hr_upscaler": UPSCALER if hosts.IS_NEO else "Latent"},
        }
        yield {**(IMG2IMG | size if kind == "img2img" else size | extra[kind]), "guard": guard, "seed": index}


def run(host: hosts.Host, count: int, every: int) -> list[dict[str, int]]:
    """Generate, and take the probe's figures before, every ``every`` generations, and after."""
    host.post("/probe/measuring?on=false")  # which keeps pictures of its own
    figures = [host.get("/probe/resources")]
    for done, parameters in enumerate(generations(count), 1):
        picture = host.generate(**parameters)
        assert "VAE Guard: " in picture.infotext, parameters
        if done % every == 0 or done == count:
            figures.append({"generations": done, **host.get("/probe/resources")})
    host.post("/probe/measuring?on=true")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--every", type=int, default=50, help="generations between two looks at the process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        hosts.prepare_data(data)
        host = hosts.start(data)
        try:
            for figure in run(host, options.generations, options.every):
                print(json.dumps(figure), flush=True)
        finally:
            host.stop()


if __name__ == "__main__":
    main()
