"""Mean loss over fixed batches of a part: the evaluation inside the loop."""

from __future__ import annotations

from fastffn_cli.data.dataset import TokenDataset
from fastffn_cli.distributed.parallelism import ALONE, Parallelism
from fastffn_cli.engine.precision import Precision
from fastffn_cli.tasks.task import Task


def evaluate(
    task: Task,
    dataset: TokenDataset,
    precision: Precision,
    *,
    batches: int,
    batch_size: int,
    parallelism: Parallelism = ALONE,
) -> tuple[float, int]:
    """Return the mean loss over valid tokens of the first `batches` batches, and their number.

    Always the same samples, each at most once, without dropout: two evaluations of the same weights
    give the same number. Several processes take their rows of each batch.
    """
    samples = min(batches * batch_size, dataset.num_samples)
    passes = parallelism.passes(task, precision)
    total = weight = 0.0
    task.model.eval()
    try:
        for cursor in range(0, samples, batch_size):
            first, count = parallelism.rows(min(batch_size, samples - cursor))
            if count:
                batch = dataset.batch(cursor + first, count)
                total += sum(passes.evaluate([batch]))
                weight += task.weight(batch)
    finally:
        task.model.train()
    total, weight = parallelism.total(total, weight)
    return total / max(weight, 1.0), int(weight)
