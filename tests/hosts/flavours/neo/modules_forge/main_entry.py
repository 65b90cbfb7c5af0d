"""The choice of a VAE, which each preset has one of."""

module_list: dict = {}


def refresh_models():
    return [], module_list.keys()


def modules_change(values, preset, save=True, refresh=True):
    from modules import shared

    chosen = [module_list.get(value, value) for value in values]
    shared.opts.data["forge_additional_modules"] = chosen
    shared.opts.data[f"forge_additional_modules_{preset}"] = chosen
    return True
