def init_script_args(p, request, default_script_args):
    return [*default_script_args, request.alwayson_scripts]
