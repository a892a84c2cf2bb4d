"""Rules of the `Distributed` section: what many processes can train, and how many there must be.

A rule that only training breaks is a refusal: a plan on paper may break it, and is told.
"""

from __future__ import annotations

from fastffn_cli.config.review import Review, reads


@reads("Distributed")
def _degrees_make_the_processes(review: Review) -> None:
    degrees, there = review.config.Distributed, review.processes
    wanted = degrees.processes
    if there is None or wanted == there:
        return
    named = {
        "dp_degree": degrees.dp_degree,
        "sharding.sharding_degree": degrees.sharding.sharding_degree,
        "mp_degree": degrees.mp_degree,
        "pp_degree": degrees.pp_degree,
    }
    above = {name: degree for name, degree in named.items() if degree > 1}
    product = " x ".join(f"{name.rpartition('.')[2]} {each}" for name, each in above.items())
    rest = wanted // degrees.dp_degree
    if there == 1:
        said = f"{product} takes {wanted} processes, and this is one: type `fastffn launch --nproc "
        said += f"{wanted} -- pretrain ...`, or set the degrees to 1"
    elif there % rest == 0:
        said = f"this job has {there} processes, and Distributed asks for "
        said += f"{f'{product} = ' if above else ''}{wanted}: set dp_degree to {there // rest}"
    else:
        said = f"{product} = {wanted} processes, and this job has {there}: launch {wanted}, or set "
        said += f"degrees that multiply to {there}"
    review.error(said, *(f"Distributed.{name}" for name in above), "Distributed.dp_degree")


@reads("Inference.mp_degree")
def _one_process_infers(review: Review) -> None:
    degree = review.config.Inference.mp_degree
    if degree > 1:
        review.error(
            f"mp_degree {degree}: eval and generate run in one process, whatever wrote the "
            "checkpoint. Set it to 1",
            "Inference.mp_degree",
        )


@reads("Global.device")
def _launch_picks_devices(review: Review) -> None:
    device = review.config.Global.device
    if "," in device:
        kind, _, indices = device.partition(":")
        review.error(
            f"device {device} names several devices, and a process has one: write {kind}, and type "
            f"`fastffn launch --devices {indices} -- pretrain ...`",
            "Global.device",
        )


@reads("Distributed", "Schedule")
def _switch_among_processes(review: Review) -> None:
    degrees, switch = review.config.Distributed, review.config.Schedule.switch
    if switch not in ("never", "fraction") and degrees.processes > 1:
        review.refuse(
            f"switch {switch} measures in one process, and there are {degrees.processes}: set "
            "switch to fraction",
            "Schedule.switch",
        )


@reads("Distributed.sharding", "Model.ffn", "Schedule.switch")
def _sharding_stage_runs(review: Review) -> None:
    sharding = review.config.Distributed.sharding
    if sharding.sharding_degree == 1:
        return
    key = "Distributed.sharding.sharding_stage"
    if sharding.sharding_stage == 3:
        review.refuse(
            "sharding_stage 3 is planned with --dry-run, and not trained with: Paddle's "
            "group_sharded_parallel does not run on a CPU, and frees the table that the tied head "
            "needs elsewhere. Set it to 2",
            key,
        )
    if sharding.sharding_stage == 2 and review.config.Model.ffn.kind == "moe":
        review.refuse(
            "sharding_stage 2 needs a gradient in every process, and an expert without tokens has "
            "none: set sharding_stage to 1",
            key,
        )
    if sharding.sharding_stage == 2 and review.config.Schedule.switch != "never":
        review.refuse(
            "sharding_stage 2 keeps no gradients for the switch of a run to measure: set "
            "sharding_stage to 1, or Schedule.switch to never",
            key, "Schedule.switch",
        )  # fmt: skip


@reads("Distributed.sharding")
def _states_stay_on_cards(review: Review) -> None:
    sharding, key = review.config.Distributed.sharding, "Distributed.sharding.sharding_offload"
    if sharding.sharding_offload and sharding.sharding_degree > 1:
        review.refuse("sharding_offload is not in this version: set it to False", key)
    elif key in review.given:
        review.without_effect[key] = "it is not in this version"


@reads("Distributed.sequence_parallel", "Distributed.mp_degree")
def _sequence_needs_degree(review: Review) -> None:
    degrees = review.config.Distributed
    if degrees.sequence_parallel and degrees.mp_degree == 1:
        review.note(
            "sequence_parallel has no effect while mp_degree is 1: it divides time among tensor "
            "parallel processes",
            "Distributed.sequence_parallel",
        )


@reads("Distributed.sharding")
def _stage_needs_degree(review: Review) -> None:
    sharding = review.config.Distributed.sharding
    if sharding.sharding_stage > 1 and sharding.sharding_degree == 1:
        review.warn(
            f"sharding_stage {sharding.sharding_stage} has no effect while sharding_degree is 1: "
            "nothing is shared. Remove it, or set sharding_degree",
            "Distributed.sharding.sharding_stage",
        )
