"""Rules of the `Schedule` section: both stages in one run."""

from __future__ import annotations

from fastffn_cli.config.ffn import (
    FFN_KINDS,
    BlockDenseFFN,
    BlockDiagonalFFN,
    DenseFFN,
    GuidedFFN,
    LowRankActivationFFN,
    LowRankFFN,
    MoEFFN,
    MonarchFFN,
    NarrowFFN,
    ThinFFN,
)
from fastffn_cli.config.review import Review, reads

# A test holds both against `models.ffn`, which a configuration is checked without.
WITHOUT_DENSE_FORM = (LowRankActivationFFN, MoEFFN)
FROM_DENSE_WEIGHTS = (
    LowRankFFN, NarrowFFN, ThinFFN, MonarchFFN, BlockDenseFFN, BlockDiagonalFFN,
)  # fmt: skip


@reads("Schedule")
def _switch_is_named(review: Review) -> None:
    if "Schedule.switch" in review.given:
        return
    for key in review.given:
        if key.startswith("Schedule."):
            review.warn(
                f"{key.rpartition('.')[2]} has no effect while nothing ends stage 1: add "
                "Schedule.switch: fraction",
                key,
            )


@reads("Schedule", "Model")
def _something_to_switch(review: Review) -> None:
    schedule, ffn = review.config.Schedule, review.config.Model.ffn
    if schedule.switch == "never":
        if schedule.dense_start and "Schedule.switch" in review.given:
            review.warn(
                f"dense_start {schedule.dense_start:g} has no effect while switch is never: set "
                "Schedule.switch to fraction",
                "Schedule.dense_start",
            )
        return
    if isinstance(ffn, GuidedFFN) and ffn.guided_share > schedule.at:
        review.warn(
            f"guided_share {ffn.guided_share:g} is a share of the whole run, and stage 1 ends at "
            f"{schedule.at:g} at the latest: lower Model.ffn.guided_share",
            "Model.ffn.guided_share", "Schedule.at",
        )  # fmt: skip
    keys = ("Schedule.switch", "Model.ffn.kind")
    if review.config.Model.is_dense:
        review.error(
            f"switch {schedule.switch} has nothing to end: Model.ffn is dense from the start. Set "
            "Schedule.switch to never, or Model.ffn.kind to low_rank",
            *keys,
        )
    elif isinstance(ffn, WITHOUT_DENSE_FORM):
        review.error(
            f"switch {schedule.switch} cannot make kind {ffn.kind} dense, which no dense layer "
            "computes: set Schedule.switch to never, or Model.ffn.kind to low_rank",
            *keys,
        )
    if schedule.dense_start and not isinstance(ffn, (DenseFFN, *FROM_DENSE_WEIGHTS)):
        kinds = ", ".join(name for name, kind in FFN_KINDS.items() if kind in FROM_DENSE_WEIGHTS)
        review.error(
            f"dense_start {schedule.dense_start:g} cannot factor dense weights into kind "
            f"{ffn.kind}: set it to 0, or Model.ffn.kind to one of {kinds}",
            "Schedule.dense_start", "Model.ffn.kind",
        )  # fmt: skip


@reads("Schedule")
def _shares_are_in_order(review: Review) -> None:
    schedule = review.config.Schedule
    if schedule.switch == "never":
        return
    if schedule.dense_start >= schedule.at:
        review.error(
            f"dense_start {schedule.dense_start:g} is not below at {schedule.at:g}, where stage 1 "
            "ends: lower Schedule.dense_start, or raise Schedule.at",
            "Schedule.dense_start", "Schedule.at",
        )  # fmt: skip
    if schedule.switch != "fraction" and schedule.earliest >= schedule.at:
        review.error(
            f"earliest {schedule.earliest:g} is not below at {schedule.at:g}, the latest switch: "
            "lower Schedule.earliest, or raise Schedule.at",
            "Schedule.earliest", "Schedule.at",
        )  # fmt: skip


ONLY_FOR = {
    "earliest": ("slope", "fork", "blocked"),
    "check_freq": ("slope", "fork", "blocked"),
    "fork_steps": ("slope", "fork"),
    "patience": ("slope", "fork", "blocked"),
}


@reads("Schedule")
def _options_have_effect(review: Review) -> None:
    schedule = review.config.Schedule
    if schedule.switch == "never":
        return
    for name, switches in ONLY_FOR.items():
        key = f"Schedule.{name}"
        default = type(schedule).model_fields[name].default
        if (
            schedule.switch not in switches
            and review.wrote(key)
            and getattr(schedule, name) != default
        ):
            review.note(f"{name} has no effect with switch {schedule.switch}", key)


# Above this share of stage 1's steps, forks are worth a word.
COSTLY = 0.1


@reads("Schedule")
def _forks_are_affordable(review: Review) -> None:
    schedule = review.config.Schedule
    # One fork ends before the next begins.
    share = schedule.fork_steps / max(schedule.check_freq, schedule.fork_steps)
    if schedule.switch == "fork" and share > COSTLY:
        review.note(
            f"a fork of {schedule.fork_steps} dense steps every {schedule.check_freq} adds more "
            f"than {share:.0%} to the time of stage 1: set Schedule.check_freq to about "
            f"{schedule.fork_steps * 30} for a few percent",
            "Schedule.check_freq", "Schedule.fork_steps", "Schedule.switch",
        )  # fmt: skip


@reads("Schedule", "Engine")
def _measurements_fit(review: Review) -> None:
    schedule, max_steps = review.config.Schedule, review.config.Engine.max_steps
    if schedule.switch in ("never", "fraction") or max_steps is None:
        return
    freq, takes = schedule.check_freq, schedule.fork_steps if schedule.switch == "fork" else 0
    first = max(freq, -(-round(schedule.earliest * max_steps) // freq) * freq)
    stride = max(freq, -(-takes // freq) * freq)
    latest = schedule.latest_switch(max_steps)
    answers = len(range(first, latest - takes, stride))
    if answers < schedule.patience:
        review.warn(
            f"there is time for {answers} measurements before the latest switch, at step "
            f"{latest}, and {schedule.patience} in a row must ask for an "
            "earlier one: lower Schedule.check_freq or Schedule.patience",
            "Schedule.check_freq", "Schedule.patience", "Schedule.switch",
        )  # fmt: skip
