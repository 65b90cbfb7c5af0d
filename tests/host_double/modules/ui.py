"""The page: txt2img, img2img, the tabs of extensions, Settings. Ids of the elements are the host's."""

import json
import os
from contextlib import closing
from functools import partial

import gradio as gr

from modules import call_queue, infotext_utils, paths, processing, script_callbacks, scripts, shared
from modules.ui_common import create_refresh_button, plaintext_to_html

txt2img_paste_fields: list = []
img2img_paste_fields: list = []


def javascript(function):
    """A function of the page's, as an event's argument of gradio 3 or 4."""
    return {"_js" if gr.__version__.startswith("3.") else "js": function}


def generate(tabname):
    """The function behind the button: fields of the tab, then what the scripts' controls hold."""
    kind = getattr(processing, f"StableDiffusionProcessing{tabname.title()}")

    def run(
        id_task, request: gr.Request, prompt, negative_prompt, steps, width, height,
        n_iter, batch_size, seed, *args,
    ):  # fmt: skip
        p = kind(
            sd_model=shared.sd_model,
            outpath_samples=getattr(shared.opts, f"outdir_{tabname}_samples"),
            prompt=prompt, negative_prompt=negative_prompt, sampler_name="Euler", steps=int(steps),
            width=int(width), height=int(height), n_iter=int(n_iter), batch_size=int(batch_size), seed=seed,
        )  # fmt: skip
        if tabname == "img2img":
            (p.init_images, p.denoising_strength), args = ([args[0]], args[1]), args[2:]
            assert p.init_images[0] is not None, "no picture to start from"
        else:
            p.enable_hr, p.hr_scale, p.hr_upscaler, *args = args
        runner = p.scripts = getattr(scripts, f"scripts_{tabname}")
        p.script_args = tuple(args)
        with closing(p):
            processed = runner.run(p, *p.script_args) or processing.process_images(p)
        log = plaintext_to_html(processed.comments, classname="comments")
        return processed.images, processed.js(), plaintext_to_html(processed.info), log

    return call_queue.wrap_gradio_gpu_call(run, extra_outputs=[None, "", ""])


def create_tab(tabname):
    is_img2img = tabname == "img2img"
    runner = scripts.scripts_current = getattr(scripts, f"scripts_{tabname}")
    runner.initialize_scripts(is_img2img=is_img2img)
    with gr.Blocks(analytics_enabled=False) as interface:
        with gr.Row(elem_id=f"{tabname}_toprow"):
            with gr.Column(scale=4):
                prompt = gr.Textbox(label="Prompt", elem_id=f"{tabname}_prompt", lines=3, show_label=False)
                negative = gr.Textbox(label="Negative prompt", elem_id=f"{tabname}_neg_prompt", show_label=False)
            with gr.Column(scale=1):
                submit = gr.Button("Generate", elem_id=f"{tabname}_generate", variant="primary")
                paste = gr.Button("\u2199\ufe0f", elem_id="paste" if not is_img2img else "img2img_paste")
        with gr.Row():
            with gr.Column(variant="compact", elem_id=f"{tabname}_settings"):
                special = []
                if is_img2img:
                    image = gr.Image(label="Image", elem_id="img2img_image", type="pil", image_mode="RGBA")
                    strength = gr.Slider(0, 1, 0.75, label="Denoising strength", elem_id="img2img_denoising_strength")
                    special = [image, strength]
                steps = gr.Slider(1, 150, 2, step=1, label="Sampling steps", elem_id=f"{tabname}_steps")
                width = gr.Slider(64, 2048, 512, step=8, label="Width", elem_id=f"{tabname}_width")
                height = gr.Slider(64, 2048, 512, step=8, label="Height", elem_id=f"{tabname}_height")
                count = gr.Slider(1, 8, 1, step=1, label="Batch count", elem_id=f"{tabname}_batch_count")
                batch = gr.Slider(1, 8, 1, step=1, label="Batch size", elem_id=f"{tabname}_batch_size")
                seed = gr.Number(label="Seed", value=-1, precision=0, elem_id=f"{tabname}_seed")
                if not is_img2img:
                    enable_hr = gr.Checkbox(False, label="Hires. fix", elem_id="txt2img_hr-checkbox")
                    hr_scale = gr.Slider(1, 4, 2, step=0.05, label="Upscale by", elem_id="txt2img_hr_scale")
                    upscalers = [*shared.latent_upscale_modes, *(x.name for x in shared.sd_upscalers)]
                    upscaler = gr.Dropdown(upscalers, value="Latent", label="Upscaler", elem_id="txt2img_hr_upscaler")
                    special = [enable_hr, hr_scale, upscaler]
                with gr.Column(elem_id=f"{tabname}_script_container"):
                    runner.prepare_ui()
                    custom_inputs = runner.setup_ui()
            with gr.Column(variant="panel", elem_id=f"{tabname}_results"):
                gallery = gr.Gallery(
                    label="Output",
                    show_label=False,
                    elem_id=f"{tabname}_gallery",
                    columns=4,
                    preview=True,
                    **({"format": "png"} if gr.__version__ >= "4" else {}),  # as the hosts' ui_tempdir sees to it
                )
                info_json = gr.Textbox(visible=False, elem_id=f"generation_info_{tabname}")
                send = gr.Button("\U0001f5bc\ufe0f", elem_id=f"{tabname}_send_to_img2img")
                infotext = gr.HTML(elem_id=f"html_info_{tabname}", elem_classes="infotext")
                log = gr.HTML(elem_id=f"html_log_{tabname}", elem_classes="html-log")
        fields = [prompt, negative, steps, width, height, count, batch, seed]
        dummy = gr.Textbox(visible=False)
        submit.click(
            fn=generate(tabname),
            **javascript("submit_img2img" if is_img2img else "submit"),
            inputs=[dummy, *fields, *special, *custom_inputs],
            outputs=[gallery, info_json, infotext, log],
            show_progress=False,
        )
        labels = (
            "Prompt",
            "Negative prompt",
            "Steps",
            "Size-1",
            "Size-2",
            "Batch count",
            "Batch size",
            "Seed",
        )
        names = ("prompt", "negative_prompt", "steps", "width", "height", "n_iter", "batch_size", "seed")
        pairs = [
            infotext_utils.PasteField(field, label, api=name)
            for field, label, name in zip(fields, labels, names, strict=True)
        ]
        pairs += runner.infotext_fields
        infotext_utils.add_paste_fields(tabname, None, pairs)
        infotext_utils.connect_paste(paste, pairs, prompt, None, tabname)
    infotext_utils.send_buttons[tabname] = send, runner.paste_field_names
    scripts.scripts_current = None
    return interface


def create_setting_component(key):
    info = shared.opts.data_labels[key]
    default = shared.opts.data.get(key, info.default)
    arguments = info.component_args() if callable(info.component_args) else info.component_args
    kinds = {bool: gr.Checkbox, int: gr.Number, float: gr.Number}
    component = info.component or kinds.get(type(info.default), gr.Textbox)
    with gr.Row():
        res = component(label=info.label, value=default, elem_id=f"setting_{key}", **(arguments or {}))
        if info.refresh is not None:
            create_refresh_button(res, info.refresh, info.component_args, f"refresh_{key}")
        if info.comment_after:
            gr.HTML(info.comment_after, elem_classes="gradio-html")
    return res


def create_quicksettings():
    """At the top of the page instead of among the settings."""
    with gr.Row(elem_id="quicksettings", variant="compact"):
        for key in shared.opts.quicksettings_list:
            shared.settings_components[key] = create_setting_component(key)


def connect_quicksettings():
    """What is chosen there counts at once; the answer's value is what counts then, and if it is another one, that
    is a change once more.
    """

    def set_one(value, key):
        if shared.opts.set(key, value):
            shared.opts.save(shared.config_filename)
        return gr.update(value=getattr(shared.opts, key))

    for key in shared.opts.quicksettings_list:
        component = shared.settings_components[key]
        component.change(partial(set_one, key=key), inputs=[component], outputs=[component])


def create_settings():
    """The interface, and what says what *Apply settings* does, once the page is being made."""
    opts = shared.opts
    opts.reorder()
    with gr.Blocks(analytics_enabled=False) as interface:
        with gr.Row():
            submit = gr.Button("Apply settings", variant="primary", elem_id="settings_submit")
            restart = gr.Button("Reload UI", variant="primary", elem_id="settings_restart_gradio")
        result = gr.HTML(elem_id="settings_result")
        sections: dict = {}
        for key, info in opts.data_labels.items():
            if info.section and info.section[0] is not None and key not in opts.quicksettings_list:
                sections.setdefault(info.section, []).append(key)
        shared.settings_components = {}
        with gr.Tabs(elem_id="settings"):
            for (section_id, title), keys in sections.items():
                with (
                    gr.TabItem(elem_id=f"settings_{section_id}", label=title),
                    gr.Column(elem_id=f"column_settings_{section_id}", variant="compact"),
                ):
                    for key in keys:
                        shared.settings_components[key] = create_setting_component(key)
    keys = [key for key in shared.settings_components if not opts.data_labels[key].do_not_save]

    def apply(*values):
        changed = [key for key, value in zip(keys, values, strict=True) if opts.set(key, value)]
        opts.save(shared.config_filename)
        return opts.dumpjson(), f"{len(changed)} settings changed: {', '.join(changed)}."

    with interface:
        json_box = gr.Textbox(opts.dumpjson(), visible=False, elem_id="settings_json")
        restart.click(shared.state.request_restart, **javascript("restart_reload"), inputs=[], outputs=[])

    def connect_submit():
        submit.click(call_queue.wrap_gradio_call(apply, extra_outputs=[gr.update()]),
                     inputs=[shared.settings_components[key] for key in keys], outputs=[json_box, result])  # fmt: skip

    return interface, connect_submit


def create_pnginfo():
    from modules import images

    def read(image):
        if image is None:
            return "", ""
        text = images.read_info_from_image(image)[0] or ""
        return plaintext_to_html(text), text

    with gr.Blocks(analytics_enabled=False) as interface:
        image = gr.Image(elem_id="pnginfo_image", label="Source", type="pil")
        html = gr.HTML(elem_id="pnginfo_html")
        text = gr.Textbox(elem_id="pnginfo_generation_info", visible=False)
        image.change(read, inputs=[image], outputs=[html, text])
    return interface


def webpath(path):
    return f"file={path}?{os.path.getmtime(path)}"


def reload_javascript():
    """Every page gets the host's script, then the extensions' scripts and styles."""
    files = [os.path.join(paths.script_path, "script.js")]
    files += [file.path for file in scripts.list_scripts("javascript", ".js")]
    head = "".join(f'<script type="text/javascript" src="{webpath(file)}"></script>\n' for file in files)
    style = "".join(
        f'<link rel="stylesheet" property="stylesheet" href="{webpath(file)}">'
        for file in scripts.list_files_with_name("style.css")
    )
    original = getattr(shared, "GradioTemplateResponseOriginal", gr.routes.templates.TemplateResponse)
    shared.GradioTemplateResponseOriginal = original

    def response(*args, **kwargs):
        res = original(*args, **kwargs)
        res.body = res.body.replace(b"</head>", f"{head}</head>".encode())
        res.body = res.body.replace(b"</body>", f"{style}</body>".encode())
        res.init_headers()
        return res

    gr.routes.templates.TemplateResponse = response


def create_ui():
    reload_javascript()
    infotext_utils.reset()
    tabs = [(create_tab(name), name, name) for name in ("txt2img", "img2img")]
    tabs += [(create_pnginfo(), "PNG Info", "pnginfo")]
    script_callbacks.ui_settings_callback()
    tabs += script_callbacks.ui_tabs_callback()
    settings, connect_submit = create_settings()
    tabs += [(settings, "Settings", "settings")]
    shared.tab_names = [label for _, label, _ in tabs]
    with gr.Blocks(theme=shared.gradio_theme, analytics_enabled=False, title="Stable Diffusion") as demo:
        create_quicksettings()
        with gr.Tabs(elem_id="tabs"):
            for interface, label, ifid in tabs:
                with gr.TabItem(label, id=ifid, elem_id=f"tab_{ifid}"):
                    interface.render()
        connect_submit()
        connect_quicksettings()
        gr.Button("Change checkpoint", elem_id="change_checkpoint", visible=False)
        infotext_utils.connect_sends()
        gr.HTML(json.dumps({"double": True}), elem_id="footer", visible=False)
        saved = [key for key in shared.settings_components if not shared.opts.data_labels[key].do_not_save]
        demo.load(
            lambda: [getattr(shared.opts, key) for key in saved],
            outputs=[shared.settings_components[key] for key in saved],
            queue=False,
        )
    return demo
