"""Results of made-up comparisons, for the tests of the report."""

from dataclasses import replace
from pathlib import Path

from fastffn_cli.comparison.results import ArmResult, Point, Results, RunResult, StepTime

OUT = Path("/runs/demo")
STEPS, TOKENS_PER_STEP = 100, 1000
DENSE_SECONDS = 2.0


def run(arm, seed, losses, *, step_s=DENSE_SECONDS, budget="tokens", steps=STEPS, **changes):
    """A finished run with an evaluation each equal part of its steps."""
    each = steps // len(losses)
    points = [
        Point(
            step=each * number,
            tokens=each * number * TOKENS_PER_STEP,
            seconds=each * number * step_s,
            loss=loss,
        )
        for number, loss in enumerate(losses, start=1)
    ]
    made = RunResult(
        arm=arm,
        budget=budget,
        seed=seed,
        learning_rate=1e-3,
        steps=steps,
        evals=tuple(points),
        final_loss=losses[-1],
        wall_seconds=steps * step_s * 1.1,
        switched_at=None,
        dense_steps=0,
        problem=None,
        dir=OUT / "runs" / f"{arm}-{budget}-{seed}",
    )
    return replace(made, **changes)


def unfinished(arm, seed, losses=(4.0,), problem="unfinished: step 40 of 100", **changes):
    return replace(run(arm, seed, losses, **changes), final_loss=None, problem=problem)


def arm(name, runs=(), *, step_s=DENSE_SECONDS, sweep=(), **changes):
    made = ArmResult(
        name=name,
        description=f"{name} all the way",
        parameters=1_234_567,
        stage1_flops_per_token=800,
        dense_flops_per_token=1000,
        stage1_step=StepTime(step_s, step_s * 0.95, step_s * 1.05),
        dense_step=StepTime(DENSE_SECONDS, 1.9, 2.1),
        learning_rate=1e-3,
        at_edge=False,
        sweep=tuple(sweep),
        runs=tuple(runs),
    )
    return replace(made, **changes)


def results(*arms, seeds=(1, 2, 3), **changes):
    made = Results(
        name="demo",
        out_dir=OUT,
        baseline="dense",
        arms=arms,
        seeds=tuple(seeds),
        tokens=STEPS * TOKENS_PER_STEP,
        tokens_per_step=TOKENS_PER_STEP,
        downstream=(),
        downstream_data=None,
        machine="2 cores of a test",
        versions={"paddle": "3.3.1"},
        commit="abc1234",
        model="2 layers x 64",
        data="1,000 tokens in 3 documents",
    )
    return replace(made, **changes)


def dense(finals=(3.0, 3.1, 3.2), **changes):
    """The baseline: evaluations at 50, 100, 150 and 200 s, the last losses as given."""
    runs = [
        run("dense", seed, (5.0, 4.0, 3.5, final)) for seed, final in enumerate(finals, start=1)
    ]
    return arm("dense", runs, stage1_flops_per_token=1000, **changes)


def cheap(finals, name="narrow", step_s=1.5, **changes):
    """An arm of 1.5 s a step: evaluations at 37.5, 75, 112.5 and 150 s."""
    runs = [
        run(name, seed, (5.0, 4.0, 3.5, final), step_s=step_s)
        for seed, final in enumerate(finals, start=1)
    ]
    return arm(name, runs, step_s=step_s, **changes)
