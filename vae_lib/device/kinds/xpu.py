"""Intel's GPUs."""

from vae_lib.device.kind import NOT_QUITE_4_GIB, Kind

# Arc allocates no more at once (intel/compute-runtime#627, intel/intel-extension-for-pytorch#325), and has no float64
# (intel/intel-extension-for-pytorch#303).
KIND = Kind("xpu", largest_block=NOT_QUITE_4_GIB, float64=False)
