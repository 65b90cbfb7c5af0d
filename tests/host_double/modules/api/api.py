"""The HTTP API: generations, settings, scripts, VAEs, PNG info; errors as JSON with the host's four fields."""

import base64
import io
from contextlib import closing

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse
from PIL import PngImagePlugin

from modules import errors, images, infotext_utils, scripts, sd_models, sd_samplers, sd_vae, shared, ui
from modules.api import models
from modules.processing import (
    StableDiffusionProcessingImg2Img,
    StableDiffusionProcessingTxt2Img,
    process_images,
)


def script_name_to_index(name, candidates):
    try:
        return [script.title().lower() for script in candidates].index(name.lower())
    except Exception as e:
        raise HTTPException(status_code=422, detail=f"Script '{name}' not found") from e


def decode_base64_to_image(encoding):
    if encoding.startswith("data:image/"):
        encoding = encoding.split(",")[1]
    try:
        return images.read(io.BytesIO(base64.b64decode(encoding)))
    except Exception as e:
        raise HTTPException(status_code=500, detail="Invalid encoded image") from e


def encode_pil_to_base64(image):
    metadata = PngImagePlugin.PngInfo()
    for key, value in image.info.items():
        metadata.add_text(str(key), str(value))
    with io.BytesIO() as file:
        image.save(file, format="PNG", pnginfo=metadata)
        return base64.b64encode(file.getvalue())


def api_middleware(app: FastAPI):
    def handle_exception(request: Request, e: Exception):
        known = {"detail": vars(e).get("detail", ""), "body": vars(e).get("body", ""), "errors": str(e)}
        if not isinstance(e, HTTPException):
            errors.report(f"API error: {request.method}: {request.url} {e}", exc_info=True)
        content = jsonable_encoder({"error": type(e).__name__, **known})
        return JSONResponse(status_code=vars(e).get("status_code", 500), content=content)

    @app.middleware("http")
    async def exception_handling(request: Request, call_next):
        try:
            return await call_next(request)
        except Exception as e:
            return handle_exception(request, e)

    @app.exception_handler(Exception)
    async def fastapi_exception_handler(request: Request, e: Exception):
        return handle_exception(request, e)

    @app.exception_handler(HTTPException)
    async def http_exception_handler(request: Request, e: HTTPException):
        return handle_exception(request, e)


class Api:
    def __init__(self, app: FastAPI, queue_lock):
        self.app, self.queue_lock = app, queue_lock
        api_middleware(app)
        add = app.add_api_route
        add("/sdapi/v1/txt2img", self.text2imgapi, methods=["POST"], response_model=models.ImagesResponse)
        add("/sdapi/v1/img2img", self.img2imgapi, methods=["POST"], response_model=models.ImagesResponse)
        add("/sdapi/v1/png-info", self.pnginfoapi, methods=["POST"])
        add("/sdapi/v1/options", self.get_config, methods=["GET"])
        add("/sdapi/v1/options", self.set_config, methods=["POST"])
        add("/sdapi/v1/sd-models", self.get_sd_models, methods=["GET"])
        add("/sdapi/v1/sd-vae", self.get_sd_vaes, methods=["GET"])
        add("/sdapi/v1/refresh-vae", shared.shared_items.refresh_vae_list, methods=["POST"])
        add("/sdapi/v1/refresh-checkpoints", shared.refresh_checkpoints, methods=["POST"])
        add("/sdapi/v1/scripts", self.get_scripts_list, methods=["GET"])
        add("/sdapi/v1/script-info", self.get_script_info, methods=["GET"])
        add("/sdapi/v1/interrupt", shared.state.interrupt, methods=["POST"])
        for runner, is_img2img in ((scripts.scripts_txt2img, False), (scripts.scripts_img2img, True)):
            if not runner.scripts:
                runner.initialize_scripts(is_img2img)
        self.defaults = {
            runner: self.init_default_script_args(runner)
            for runner in (scripts.scripts_txt2img, scripts.scripts_img2img)
        }

    def init_default_script_args(self, runner):
        """The values that the controls start with, asked by building every script's UI once more."""
        script_args = [None] * max([1, *(script.args_to or 0 for script in runner.scripts)])
        script_args[0] = 0
        with gr.Blocks():
            for script in runner.scripts:
                controls = script.ui(script.is_img2img)
                if controls:
                    script_args[script.args_from : script.args_to] = [control.value for control in controls]
        return script_args

    def init_script_args(
        self,
        request,
        default_script_args,
        selectable_scripts,
        selectable_idx,
        script_runner,
        *,
        input_script_args=None,
    ):
        script_args = default_script_args.copy()
        for position, value in (input_script_args or {}).items():
            script_args[position] = value
        if selectable_scripts:
            script_args[selectable_scripts.args_from : selectable_scripts.args_to] = request.script_args
            script_args[0] = selectable_idx + 1
        for name, wanted in (request.alwayson_scripts or {}).items():
            script = script_runner.scripts[script_name_to_index(name, script_runner.scripts)]
            if not script.alwayson:
                detail = "Cannot have a selectable script in the always on scripts params"
                raise HTTPException(status_code=422, detail=detail)
            if "args" in wanted:
                count = min(script.args_to - script.args_from, len(wanted["args"]))
                for i in range(count):
                    script_args[script.args_from + i] = wanted["args"][i]
        return script_args

    def apply_infotext(self, request, tabname, runner):
        """Fill fields that the request leaves open from its infotext; gives the scripts' part by position."""
        if not request.infotext:
            return {}
        params = infotext_utils.parse_generation_parameters(request.infotext)
        given = request.dict(exclude_unset=True)
        positions = {control: i for i, control in enumerate(runner.inputs)}
        mentioned = {}
        for field in infotext_utils.paste_fields[tabname]["fields"]:
            value = infotext_utils.pasted_value(field, params)
            if isinstance(value, dict):
                value = value.get("value")
            if value is None:
                continue
            if field.api and field.api not in given:
                setattr(request, field.api, value)  # which must be one of the request's own fields
            if field.component in positions:
                mentioned[positions[field.component]] = value
        return mentioned

    def _generate(self, request, tabname, processing, **changes):
        runner = getattr(scripts, f"scripts_{tabname}")
        from_infotext = self.apply_infotext(request, tabname, runner)
        selectable = index = None
        if request.script_name:
            index = script_name_to_index(request.script_name, runner.selectable_scripts)
            selectable = runner.selectable_scripts[index]
        if request.sampler_name not in sd_samplers.all_samplers_map:
            raise HTTPException(status_code=400, detail="Sampler not found")
        silent = {"do_not_save_samples": not request.save_images, "do_not_save_grid": not request.save_images}
        args = vars(request.copy(update={**silent, **changes}))
        script_args = self.init_script_args(
            request, self.defaults[runner], selectable, index, runner, input_script_args=from_infotext
        )
        for name in [
            "script_name",
            "script_args",
            "alwayson_scripts",
            "infotext",
            "force_task_id",
            "send_images",
            "save_images",
            "include_init_images",
        ]:
            args.pop(name, None)
        with self.queue_lock, closing(processing(sd_model=shared.sd_model, **args)) as p:
            p.is_api, p.scripts = True, runner
            p.outpath_samples = getattr(shared.opts, f"outdir_{tabname}_samples")
            try:
                shared.state.begin(job=f"scripts_{tabname}")
                p.script_args = tuple(script_args)
                processed = runner.run(p, *script_args) if selectable else process_images(p)
            finally:
                shared.state.end()
        encoded = [encode_pil_to_base64(image) for image in processed.images] if request.send_images else []
        return models.ImagesResponse(images=encoded, parameters=vars(request), info=processed.js())

    def text2imgapi(self, txt2imgreq: models.StableDiffusionTxt2ImgProcessingAPI):
        return self._generate(txt2imgreq, "txt2img", StableDiffusionProcessingTxt2Img)

    def img2imgapi(self, img2imgreq: models.StableDiffusionImg2ImgProcessingAPI):
        if img2imgreq.init_images is None:
            raise HTTPException(status_code=404, detail="Init image not found")
        changes = {"init_images": [decode_base64_to_image(image) for image in img2imgreq.init_images]}
        changes["mask"] = decode_base64_to_image(img2imgreq.mask) if img2imgreq.mask else None
        answer = self._generate(img2imgreq, "img2img", StableDiffusionProcessingImg2Img, **changes)
        answer.parameters = {k: v for k, v in answer.parameters.items() if k not in ("init_images", "mask")}
        return answer

    def pnginfoapi(self, req: dict):
        geninfo, items = images.read_info_from_image(decode_base64_to_image(req["image"].strip()))
        params = infotext_utils.parse_generation_parameters(geninfo or "")
        return {"info": geninfo or "", "items": items, "parameters": params}

    def get_config(self):
        return dict(shared.opts.data)

    def set_config(self, req: dict):
        checkpoint = req.get("sd_model_checkpoint")
        if checkpoint is not None and checkpoint not in sd_models.checkpoint_aliases:
            raise RuntimeError(f"model {checkpoint!r} not found")
        for key, value in req.items():
            shared.opts.set(key, value, is_api=True)
        shared.opts.save(shared.config_filename)

    def get_sd_models(self):
        infos = sd_models.checkpoints_list.values()
        return [{"title": x.title, "model_name": x.model_name, "filename": x.filename} for x in infos]

    def get_sd_vaes(self):
        return [{"model_name": name, "filename": path} for name, path in sd_vae.vae_dict.items()]

    def get_scripts_list(self):
        return {
            tab: [script.name for script in getattr(scripts, f"scripts_{tab}").scripts if script.name]
            for tab in ("txt2img", "img2img")
        }

    def get_script_info(self):
        runners = (scripts.scripts_txt2img, scripts.scripts_img2img)
        return [script.api_info for runner in runners for script in runner.scripts if script.api_info is not None]


assert ui  # building the API needs the page's scripts to be set up
