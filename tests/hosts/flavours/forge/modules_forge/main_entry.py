module_list: dict = {}


def refresh_models():
    return [], module_list.keys()


def modules_change(values, save=True, refresh=True):
    from modules import shared

    shared.opts.data["forge_additional_modules"] = [module_list.get(value, value) for value in values]
    return True
