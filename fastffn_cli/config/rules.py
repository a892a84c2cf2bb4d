"""Rules between keys: one small function each, registered with the keys it reads.

Every text ends in what to type.
"""

from __future__ import annotations

from fastffn_cli.config.derive import ACCUMULATE, ENABLE, GLOBAL, LOCAL, MICRO, PURE_FP16
from fastffn_cli.config.recipes import defaults_of
from fastffn_cli.config.review import Review, largest_divisor, nearest_divisor, reads


@reads(GLOBAL, LOCAL, MICRO, ACCUMULATE, "Distributed.dp_degree", "Distributed.sharding")
def _batch_sizes_agree(review: Review) -> None:
    sizes = review.config.Data.batch_size
    total, local, micro = sizes.global_batch_size, sizes.local_batch_size, sizes.micro_batch_size
    steps = review.config.Engine.accumulate_steps
    data = review.config.Distributed.data_degree
    if data > 1:
        if not _data_parallel_agrees(review, data):
            return
        total = None if total is None else total // data
    if total is not None and local is not None and total != local:
        review.error(
            f"global_batch_size {total} and local_batch_size {local} differ, and one process does "
            f"the whole step: set both to {total}, or leave one blank",
            LOCAL, GLOBAL,
        )  # fmt: skip
        return
    batch = local or total
    if batch is None:
        return
    name, key = ("local_batch_size", LOCAL) if local else ("global_batch_size", GLOBAL)
    cards = 1 if local else data  # what is said of the global batch counts all of them
    times, over = (f" x {cards} cards", f" / {cards} cards") if cards > 1 else ("", "")
    if MICRO in review.given and batch % micro:
        fits = largest_divisor(batch, min(micro, batch))
        review.error(
            f"{name} {batch * cards} is not a multiple of micro_batch_size {micro}{times}: set "
            f"micro_batch_size to {fits}, or {name} to {-(-batch // micro) * micro * cards}",
            MICRO, key,
        )  # fmt: skip
    elif MICRO in review.given and steps is not None and batch != steps * micro:
        review.error(
            f"accumulate_steps {steps} is not {name} {batch * cards} / micro_batch_size {micro}"
            f"{over} = {batch // micro}: leave accumulate_steps blank",
            ACCUMULATE, MICRO, key,
        )  # fmt: skip
    elif MICRO not in review.given and batch % (steps or min(micro, batch)):
        divisor = f"accumulate_steps {steps}" if steps else f"micro_batch_size {micro} (default)"
        limit = batch // steps if steps else micro
        fits = largest_divisor(batch, max(limit, 1))
        review.error(
            f"{name} {batch * cards} is not a multiple of {divisor}{times}: set micro_batch_size "
            f"to {fits}" + (" and leave accumulate_steps blank" if steps else ""),
            *((ACCUMULATE, key) if steps else (key,)),
        )


def _data_parallel_agrees(review: Review, data: int) -> bool:
    """Whether every data parallel card has the same share of the step."""
    sizes = review.config.Data.batch_size
    total, local = sizes.global_batch_size, sizes.local_batch_size
    cards = f"the {data} cards of dp_degree x sharding_degree"
    if total is None or total == (local or total // data) * data:
        return True
    if local is None:
        review.error(
            f"global_batch_size {total} is not a multiple of {cards}: set global_batch_size to "
            f"{-(-total // data) * data}",
            GLOBAL,
        )
    else:
        review.error(
            f"global_batch_size {total} is not local_batch_size {local} x {cards}: set "
            f"global_batch_size to {local * data}, or leave one blank",
            LOCAL, GLOBAL,
        )  # fmt: skip
    return False


@reads("Model.hidden_size", "Model.num_attention_heads")
def _heads_divide_width(review: Review) -> None:
    width, heads = review.config.Model.hidden_size, review.config.Model.num_attention_heads
    if width % heads:
        fits = nearest_divisor(width, heads)
        review.error(
            f"hidden_size {width} is not a multiple of num_attention_heads {heads}: set "
            f"num_attention_heads to {fits}, or hidden_size to {-(-width // heads) * heads}",
            "Model.num_attention_heads", "Model.hidden_size",
        )  # fmt: skip


@reads("Data.dataset.max_seq_len", "Model.max_position_embeddings")
def _sequence_fits(review: Review) -> None:
    length = review.config.Data.dataset.max_seq_len
    positions = review.config.Model.max_position_embeddings
    if length > positions:
        review.error(
            f"max_seq_len {length} is longer than max_position_embeddings {positions}: set "
            f"Data.dataset.max_seq_len to at most {positions}, or raise "
            "Model.max_position_embeddings",
            "Data.dataset.max_seq_len", "Model.max_position_embeddings",
        )  # fmt: skip


@reads("Offline_Eval", "Model.max_position_embeddings")
def _window_fits(review: Review) -> None:
    section, positions = review.config.Offline_Eval, review.config.Model.max_position_embeddings
    window, shift = section.max_seq_len, section.overlapping_eval
    key, shift_key = "Offline_Eval.max_seq_len", "Offline_Eval.overlapping_eval"
    if window is not None and window > positions:
        review.error(
            f"Offline_Eval.max_seq_len {window} is longer than max_position_embeddings "
            f"{positions}: set it to at most {positions}, or leave it blank",
            key,
        )
    elif shift_key in review.given and shift > (window or positions):
        review.error(
            f"overlapping_eval {shift} is longer than the window of {window or positions} tokens: "
            f"set it to at most {window or positions}, or leave it blank",
            shift_key,
        )


@reads("Optimizer.lr", "Optimizer.recipe")
def _learning_rates(review: Review) -> None:
    lr = review.config.Optimizer.lr
    usual = defaults_of(review.config.Optimizer.recipe).lr
    prefix = "Optimizer.lr."
    if lr.name == "constant":
        if lr.min_lr != usual.min_lr:
            review.note("min_lr has no effect on a constant schedule", prefix + "min_lr")
    elif lr.min_lr > lr.max_lr:
        review.warn(
            f"min_lr {lr.min_lr:g} is above max_lr {lr.max_lr:g}: the learning rate will rise "
            "after the warm-up. Exchange the two unless you mean it",
            prefix + "min_lr", prefix + "max_lr",
        )  # fmt: skip
    written = review.wrote(prefix + "warmup_rate")
    if lr.warmup_steps is not None and written and lr.warmup_rate != usual.warmup_rate:
        review.note("warmup_rate has no effect beside warmup_steps", prefix + "warmup_rate")


@reads("Optimizer.lr")
def _shape_has_its_options(review: Review) -> None:
    lr = review.config.Optimizer.lr
    for name, value, shape, usual in (
        ("power", lr.power, "polynomial", 1.0),
        ("num_cycles", lr.num_cycles, "cosine_restarts", 0.5),
    ):
        if lr.name != shape and value != usual:
            review.note(f"{name} has no effect on a {lr.name} schedule", f"Optimizer.lr.{name}")


@reads("Optimizer.lr", "Engine.max_steps")
def _schedule_fits(review: Review) -> None:
    lr, most = review.config.Optimizer.lr, review.config.Engine.max_steps
    prefix = "Optimizer.lr."
    decay = lr.decay_steps or most
    warm_up = lr.warmup_steps
    if warm_up is not None and decay is not None and warm_up > decay:
        name = "decay_steps" if lr.decay_steps else "max_steps"
        review.warn(
            f"warmup_steps {warm_up} is longer than {name} {decay}: max_lr is never reached. Set "
            f"{prefix}warmup_steps below {decay}",
            prefix + "warmup_steps",
        )
    elif lr.decay_steps and most and lr.name != "constant" and lr.decay_steps > most:
        review.note(
            f"decay_steps {lr.decay_steps} is longer than the run's {most} steps: the learning "
            "rate does not come down to min_lr",
            prefix + "decay_steps",
        )


@reads("Engine.mix_precision")
def _precision_agrees(review: Review) -> None:
    mix = review.config.Engine.mix_precision
    prefix = "Engine.mix_precision."
    if mix.use_pure_fp16:
        for name, value, pure in (
            ("enable", mix.enable, True), ("dtype", mix.dtype, "float16"),
            ("level", mix.level, "O2"),
        ):  # fmt: skip
            if value is not None and value != pure:
                shown, meant = (
                    str(item).lower() if isinstance(item, bool) else item for item in (value, pure)
                )
                review.error(
                    f"use_pure_fp16: true means {name}: {meant}, and {name} is {shown}: "
                    "remove one of the two",
                    prefix + name, PURE_FP16,
                )  # fmt: skip
    both = sorted(set(mix.custom_black_list) & set(mix.custom_white_list))
    if both:
        review.error(
            f"{', '.join(both)} in custom_black_list and in custom_white_list: keep one",
            prefix + "custom_white_list", prefix + "custom_black_list",
        )  # fmt: skip
    if (
        not (mix.enable or mix.use_pure_fp16)
        and prefix + "dtype" in review.given
        and (ENABLE not in review.given)
    ):
        review.warn(
            f"dtype {mix.dtype} has no effect while mixed precision is off: add "
            "Engine.mix_precision.enable: true",
            prefix + "dtype",
        )


@reads("Model.recompute_granularity", "Model.use_recompute")
def _recompute_is_on(review: Review) -> None:
    key = "Model.recompute_granularity"
    model = review.config.Model
    if model.recompute_granularity != "full" and not model.use_recompute:
        review.note("recompute_granularity has no effect while use_recompute is false", key)


@reads("Engine.max_steps", "Engine.num_train_epochs")
def _one_length(review: Review) -> None:
    engine = review.config.Engine
    if engine.max_steps is not None and engine.num_train_epochs > 1:
        review.note(
            f"max_steps {engine.max_steps} decides the length of the run; num_train_epochs "
            f"{engine.num_train_epochs} has no effect",
            "Engine.num_train_epochs",
        )


@reads("Data.dataset.split")
def _train_part(review: Review) -> None:
    if float(review.config.Data.dataset.split.split(",")[0]) == 0:
        review.warn(
            f"split {review.config.Data.dataset.split} leaves nothing to train on: the weights are "
            "train, valid, test, as in 949,50,1",
            "Data.dataset.split",
        )


@reads("Data.dataset.eos_id", "Model.masked_token_id", "Model.vocab_size")
def _tokens_in_vocabulary(review: Review) -> None:
    rows = review.config.Model.vocab_size
    for key, token in (
        ("Data.dataset.eos_id", review.config.Data.dataset.eos_id),
        ("Model.masked_token_id", review.config.Model.masked_token_id),
    ):
        name = key.rpartition(".")[2]
        if token is not None and rows is not None and token >= rows:
            review.error(
                f"{name} {token} is not below vocab_size {rows}: set Model.vocab_size to at least "
                f"{token + 1}, or leave {name} blank",
                key, "Model.vocab_size",
            )  # fmt: skip


@reads("Generation.min_dec_len", "Generation.max_dec_len")
def _lengths_agree(review: Review) -> None:
    section = review.config.Generation
    if section.min_dec_len > section.max_dec_len:
        review.error(
            f"min_dec_len {section.min_dec_len} is above max_dec_len {section.max_dec_len}: lower "
            "the one or raise the other",
            "Generation.min_dec_len", "Generation.max_dec_len",
        )  # fmt: skip


@reads("Generation.num_beams")
def _no_beam_search(review: Review) -> None:
    section = review.config.Generation
    if section.num_beams > 1:
        review.error(
            f"num_beams {section.num_beams}: beam search is not in this version. Set num_beams to "
            "1, with decode_strategy sampling or greedy_search",
            "Generation.num_beams",
        )


NO_EFFECT = {
    "Engine.test_iters": "fastffn eval reads the whole test part",
    "Model.type_vocab_size": "a GPT has no token types",
    "Model.fused_linear": "the kernel exists for CUDA 11.6 and later only",
    "Fused.tensor_fusion": "weights keep a buffer each",
    "Generation.length_penalty": "it belongs to beam search",
    "Generation.early_stopping": "it belongs to beam search",
    "Inference.model_dir": "name the checkpoint on the command line",
    "Profiler.enable": "there is no profiler in this version",
    "Profiler.scheduler": "there is no profiler in this version",
    "Profiler.profiler_log": "there is no profiler in this version",
    "Profiler.detailed": "there is no profiler in this version",
    "Offline_Eval.logging_freq": "evaluation shows its progress",
    "Offline_Eval.ckpt_dir": "name the checkpoint on the command line",
}


@reads()
def _keys_without_effect(review: Review) -> None:
    for key, reason in NO_EFFECT.items():
        if key in review.given:
            review.without_effect[key] = reason
