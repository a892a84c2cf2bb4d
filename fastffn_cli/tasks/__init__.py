"""What is trained and measured: each task turns batches into a loss and names its metrics."""
