"""What differs from device to device: memory, kernels, what its errors mean. Knows PyTorch, and nothing of VAEs."""

from vae_lib.device.dtypes import DTYPES, dtype_name
from vae_lib.device.failures import is_out_of_memory
from vae_lib.device.measure import PeakMemory
from vae_lib.device.memory import choose_device, free_bytes, free_memory, total_memory, usual_dtype
