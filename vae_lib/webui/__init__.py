"""VAE Guard's face in a WebUI: panel, tab, settings, API. It is given the host, and never asks which it is."""

from vae_lib.webui.extension import report_second_copy, running_folder, start, stop
