"""VAE Guard at work, in whatever WebUI it is given: no host and no gradio are known here."""

from vae_lib.guard.again import Pictures, decode_again, not_repeated
from vae_lib.guard.guard import MB, NO_NETWORK, NOTHING_LOADED, UNKNOWN, Guard
from vae_lib.guard.host import Folders, Points, Setting
from vae_lib.guard.kept import Kept
from vae_lib.guard.notices import Notices
from vae_lib.guard.request import Request
from vae_lib.guard.settings import Settings
