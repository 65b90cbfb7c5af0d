"""Measurements and the training of the bundled weights; nothing here is needed to run the extension."""
