"""One file a subcommand: options in, one call, report out.

Modules here import only typer and the standard library at the top; everything heavier is imported
inside the command, so that `fastffn --help` stays under half a second.
"""
