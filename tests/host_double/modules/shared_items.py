def sd_vae_items():
    from modules import sd_vae

    return ["Automatic", "None", *sd_vae.vae_dict]


def refresh_vae_list():
    from modules import sd_vae

    sd_vae.refresh_vae_list()


def list_checkpoint_tiles(use_short=False):
    from modules import sd_models

    return sd_models.checkpoint_tiles(use_short)


def refresh_checkpoints():
    from modules import sd_models

    return sd_models.list_models()
