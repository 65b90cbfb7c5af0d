"""Forge Neo's; what is not here is Forge's."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
