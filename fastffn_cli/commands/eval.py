"""Placeholder until its owner writes it."""


def run() -> None:
    """Not written yet."""
    raise NotImplementedError
