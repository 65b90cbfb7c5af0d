"""One file an architecture: its layers as passes."""
