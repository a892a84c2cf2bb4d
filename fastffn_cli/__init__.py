"""Command line, configuration, data and training loop of fastffn."""

__version__ = "0.1.0"
