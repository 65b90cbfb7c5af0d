"""Settings: what is known about each (`OptionInfo`) and their values (`Options`)."""

import json
import sys
from dataclasses import dataclass

from modules import errors
from modules.shared_cmd_options import cmd_opts


class OptionInfo:
    def __init__(
        self,
        default=None,
        label="",
        component=None,
        component_args=None,
        onchange=None,
        section=None,
        refresh=None,
        comment_before="",
        comment_after="",
        infotext=None,
        restrict_api=False,
        category_id=None,
    ):
        self.default, self.label = default, label
        self.component, self.component_args = component, component_args
        self.onchange, self.refresh = onchange, refresh
        self.section, self.category_id = section, category_id
        self.comment_before, self.comment_after = comment_before, comment_after
        self.infotext, self.restrict_api = infotext, restrict_api
        self.do_not_save = False

    def link(self, label, url):
        self.comment_before += f"[<a href='{url}' target='_blank'>{label}</a>]"
        return self

    def js(self, label, js_func):
        self.comment_before += f"[<a onclick='{js_func}(); return false'>{label}</a>]"
        return self

    def info(self, info):
        return self.html(f"<span class='info'>({info})</span>")

    def html(self, html):
        self.comment_after += html
        return self

    def needs_restart(self):
        return self.info("requires restart")

    def needs_reload_ui(self):
        return self.info("requires Reload UI")


class OptionHTML(OptionInfo):
    def __init__(self, text):
        import gradio as gr

        def component(**kwargs):
            return gr.HTML(elem_classes="settings-info", **kwargs)

        super().__init__(str(text).strip(), component=component)
        self.do_not_save = True


def options_section(section_identifier, options_dict):
    for info in options_dict.values():
        info.section = tuple(section_identifier[:2])
        if len(section_identifier) == 3:
            info.category_id = section_identifier[2]
    return options_dict


FIELDS = ("data_labels", "data", "restricted_opts")


class Options:
    def __init__(self, data_labels: dict, restricted_opts=frozenset()):
        self.data_labels = data_labels
        self.data = {key: info.default for key, info in data_labels.items() if not info.do_not_save}
        self.restricted_opts = restricted_opts

    def __setattr__(self, key, value):
        if key in FIELDS or (key not in self.data and key not in self.data_labels):
            object.__setattr__(self, key, value)
            return
        assert not cmd_opts.freeze_settings, "changing settings is disabled"
        info = self.data_labels.get(key)
        if info is None or not info.do_not_save:
            self.data[key] = value

    def __getattr__(self, item):
        if item in FIELDS:
            return object.__getattribute__(self, item)
        if item in self.data:
            return self.data[item]
        if item in self.data_labels:
            return self.data_labels[item].default
        return object.__getattribute__(self, item)

    def set(self, key, value, is_api=False, run_callbacks=True):
        """Whether the value changed. A change whose `onchange` fails is taken back."""
        before = self.data.get(key)
        if before == value:
            return False
        option = self.data_labels[key]
        if option.do_not_save or (is_api and option.restrict_api):
            return False
        setattr(self, key, value)
        if run_callbacks and option.onchange is not None:
            try:
                option.onchange()
            except Exception as error:
                errors.display(error, f"changing setting {key} to {value}")
                setattr(self, key, before)
                return False
        return True

    def get_default(self, key):
        return self.data_labels[key].default if key in self.data_labels else None

    def save(self, filename):
        with open(filename, "w", encoding="utf8") as file:
            json.dump(self.data, file, indent=4, ensure_ascii=False)

    def load(self, filename):
        try:
            with open(filename, encoding="utf8") as file:
                self.data = json.load(file)
        except FileNotFoundError:
            self.data = {}
        for key, value in self.data.items():
            info = self.data_labels.get(key)
            if info is not None and type(info.default) is not type(value) and None not in (info.default, value):
                print(f"Warning: bad setting value: {key}: {value}", file=sys.stderr)

    def onchange(self, key, func, call=True):
        self.data_labels[key].onchange = func
        if call:
            func()

    def add_option(self, key, info):
        self.data_labels[key] = info
        if key not in self.data and not info.do_not_save:
            self.data[key] = info.default

    def reorder(self):
        self.data_labels = dict(sorted(self.data_labels.items(), key=lambda item: item[1].section[1] or ""))

    def dumpjson(self):
        return json.dumps({key: self.data.get(key, info.default) for key, info in self.data_labels.items()})

    def cast_value(self, key, value):
        default = self.data_labels[key].default
        if value is None or default is None:
            return None
        return False if isinstance(default, bool) and value == "False" else type(default)(value)


@dataclass
class OptionsCategory:
    id: str
    label: str


class OptionsCategories:
    def __init__(self):
        self.mapping = {}

    def register_category(self, category_id, label):
        self.mapping.setdefault(category_id, OptionsCategory(category_id, label))
        return category_id


categories = OptionsCategories()
