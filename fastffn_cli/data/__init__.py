"""Text -> token files -> batches."""
