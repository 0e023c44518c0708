"""See what a convolutional network sees, and whether to trust it."""

__version__ = "0.1.0"
