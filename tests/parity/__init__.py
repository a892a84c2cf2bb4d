"""Against the systems themselves, where they are installed: `make parity`."""
