"""The training loop: step, optimizer, schedule, precision, devices, checkpoint, resume."""
