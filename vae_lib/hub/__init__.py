"""VAEs from the Hugging Face hub: a catalog of those that people use, and safe downloads of any other.

>>> from vae_lib.hub import pull
>>> pull("sdxl-vae-fp16-fix", "models/VAE", taesd_folder="models/VAE-taesd").path  # doctest: +SKIP
PosixPath('models/VAE/sdxl-vae-fp16-fix.safetensors')
"""

from vae_lib.catalog.files import Catalog, CatalogEntry, load_catalog
from vae_lib.hub.client import Hub
from vae_lib.hub.download import DownloadedFile, Folders, download, pull
from vae_lib.hub.errors import (
    AmbiguousReference,
    GatedRepository,
    PickleRefused,
    TargetExists,
    VerificationError,
)
from vae_lib.hub.manager import DownloadManager, Job
from vae_lib.hub.progress import Progress
from vae_lib.hub.remote import RemoteFile, resolve
from vae_lib.hub.staging import partial_downloads
from vae_lib.hub.taesd import has_taesd
