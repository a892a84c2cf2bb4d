"""The process that measures one model's peak memory for `bench`."""

from __future__ import annotations

from pathlib import Path

from fastffn_cli import ui
from fastffn_cli.errors import EXIT_OK, EXIT_OUT_OF_MEMORY


def main(config_file: str, arm: str, device_name: str) -> int:
    """Write the peak bytes of one arm to stdout; return 0, or 3 when memory runs out."""
    from fastffn_cli.config.load import parse_config_file
    from fastffn_cli.engine.device import use_configured_device

    config = parse_config_file(Path(config_file))
    device = use_configured_device(config, device_name)

    from fastffn_cli.engine.bench import measure_peak
    from fastffn_cli.errors import is_out_of_memory

    try:
        ui.data(str(measure_peak(config, arm, device)))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return EXIT_OUT_OF_MEMORY
    return EXIT_OK
