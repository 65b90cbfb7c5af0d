"""Bodies of requests and answers. The fields of a generation are those of its processing class."""

import dataclasses
from typing import Any

from pydantic import BaseModel, Extra, create_model

from modules.processing import StableDiffusionProcessingImg2Img, StableDiffusionProcessingTxt2Img

PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "dict": dict, "list": list}


def request_model(name, processing, **more):
    fields: dict = {}
    for field in dataclasses.fields(processing):
        if field.init and field.name not in (
            "sd_model",
            "outpath_samples",
            "outpath_grids",
            "extra_generation_params",
        ):
            kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
            fields[field.name] = (PLAIN.get(kind, Any) | None, field.default)
    fields |= {
        "sampler_name": (str | None, "Euler"), "script_name": (str | None, None), "script_args": (list, []),
        "alwayson_scripts": (dict, {}), "infotext": (str | None, None), "force_task_id": (str | None, None),
        "send_images": (bool, True), "save_images": (bool, False), **more,
    }  # fmt: skip
    return create_model(name, **fields)


StableDiffusionTxt2ImgProcessingAPI = request_model(
    "StableDiffusionProcessingTxt2Img", StableDiffusionProcessingTxt2Img
)
StableDiffusionImg2ImgProcessingAPI = request_model(
    "StableDiffusionProcessingImg2Img",
    StableDiffusionProcessingImg2Img,
    init_images=(list | None, None),
    mask=(str | None, None),
    include_init_images=(bool, False),
)


class ImagesResponse(BaseModel):
    images: list | None = None
    parameters: dict
    info: str


class ScriptArg(BaseModel):
    label: str | None = None
    value: Any = None
    minimum: Any = None
    maximum: Any = None
    step: Any = None
    choices: Any = None

    class Config:
        extra = Extra.allow


class ScriptInfo(BaseModel):
    name: str | None = None
    is_alwayson: bool | None = None
    is_img2img: bool | None = None
    args: list
