"""Mean loss over fixed batches of a part: the evaluation inside the loop."""

from __future__ import annotations

import paddle

from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.engine.precision import Precision
from fastffn_cli.tasks.task import Task


def evaluate(
    task: Task, dataset: TokenDataset, precision: Precision, *, batches: int, batch_size: int
) -> tuple[float, int]:
    """Return the mean loss over valid tokens of the first `batches` batches, and their number.

    Always the same samples, each at most once, without dropout: two evaluations of the same weights
    give the same number.
    """
    total, weight = 0.0, 0.0
    samples = min(batches * batch_size, dataset.num_samples)
    task.model.eval()
    try:
        with paddle.no_grad():
            for cursor in range(0, samples, batch_size):
                batch = dataset.batch(cursor, min(batch_size, samples - cursor))
                with precision.autocast():
                    total += float(task.loss(batch).item())
                weight += task.weight(batch)
    finally:
        task.model.train()
    return total / max(weight, 1.0), int(weight)
