"""GPUs of any make on Windows, by DirectML, which comes as PyTorch's device for private use.

It never says what is free: it knows what it has allocated, as zeros on many adapters, but not of how much. Of its
largest array and of float64 nothing better is known than of Arc's.
"""

from vae_lib.device.kind import NOT_QUITE_4_GIB, Kind

KIND = Kind("privateuseone", largest_block=NOT_QUITE_4_GIB, float64=False)
