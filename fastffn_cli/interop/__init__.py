"""Other people's checkpoints and data: one file a system, behind the registry."""
