import json
import math
import threading
from pathlib import Path

from PIL import Image, PngImagePlugin

from modules import paths, script_callbacks
from modules.shared import opts

LANCZOS = Image.Resampling.LANCZOS
_numbering = threading.Lock()


def read(fp, **kwargs):
    image = Image.open(fp, **kwargs)
    image.load()
    return image


def flatten(img, bgcolor):
    if img.mode == "RGBA":
        background = Image.new("RGBA", img.size, bgcolor)
        background.paste(img, mask=img)
        img = background
    return img.convert("RGB")


def resize_image(resize_mode, im, width, height, upscaler_name=None):
    return im if im.size == (width, height) else im.resize((width, height), resample=LANCZOS)


def image_grid(imgs, batch_size=1, rows=None):
    rows = rows or max(1, math.floor(math.sqrt(len(imgs))))
    columns = math.ceil(len(imgs) / rows)
    grid = Image.new("RGB", (columns * imgs[0].width, rows * imgs[0].height), "black")
    for index, image in enumerate(imgs):
        grid.paste(image, (index % columns * imgs[0].width, index // columns * imgs[0].height))
    return grid


def save_image(image, path, basename, seed=None, prompt=None, extension="png", info=None, p=None, **kwargs):
    folder = Path(paths.data_path, path)
    folder.mkdir(parents=True, exist_ok=True)
    with _numbering:
        number = len(list(folder.glob("?????-*")))
        filename = folder / f"{number:05}-{seed}{kwargs.get('suffix', '')}.{extension}"
        filename.touch()
    params = script_callbacks.ImageSaveParams(image, p, str(filename), {"parameters": info} if info else {})
    script_callbacks.before_image_saved_callback(params)
    metadata = PngImagePlugin.PngInfo()
    for key, value in params.pnginfo.items() if opts.enable_pnginfo else ():
        metadata.add_text(key, str(value))
    params.image.save(params.filename, pnginfo=metadata)
    params.image.already_saved_as = params.filename
    script_callbacks.image_saved_callback(params)
    return params.filename, None


def read_info_from_image(image):
    items = dict(image.info or {})
    return items.pop("parameters", None), json.loads(json.dumps(items, default=str))
