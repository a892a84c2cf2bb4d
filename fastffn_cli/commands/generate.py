"""`fastffn generate`: continue prompts with a checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastffn_cli import ui
from fastffn_cli.commands.options import DeviceOption, JsonOption
from fastffn_cli.errors import UserError

if TYPE_CHECKING:
    from fastffn_cli.config.schema import Config
    from fastffn_cli.engine.checkpoint import LoadedModel
    from fastffn_cli.generation.generate import Generation
    from fastffn_cli.generation.prompts import Prompt
    from fastffn_cli.generation.sampling import SamplingOptions

PROMPTS = "Prompts"
PICKING = "Picking tokens (defaults: the checkpoint's Generation section)"


def run(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPTS", help="Texts to continue; stdin without any."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="DIR",
            help="A checkpoint or run folder; without it, the newest checkpoint of the newest run "
            "here.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file",
            metavar="F",
            help="One prompt a line; - is stdin.",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    prompt_ids: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt-ids",
            metavar='"1 2 3"',
            help="Token ids in place of text. May be repeated.",
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", metavar="N", help="New tokens at most.", rich_help_panel=PICKING
        ),
    ] = None,
    min_tokens: Annotated[
        int | None,
        typer.Option(
            "--min-tokens",
            metavar="N",
            help="New tokens before the end may come.",
            rich_help_panel=PICKING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="X",
            help="Below 1: safer picks; above 1: bolder ones.",
            rich_help_panel=PICKING,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            metavar="K",
            help="Draw among the K likeliest tokens; 0: all.",
            rich_help_panel=PICKING,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            "--top-p",
            metavar="P",
            help="Draw among the likeliest tokens until their sum exceeds P; 1: all.",
            rich_help_panel=PICKING,
        ),
    ] = None,
    greedy: Annotated[
        bool | None,
        typer.Option(
            "--greedy/--sample",
            metavar="",
            show_default=False,
            help="Always take the likeliest token, or draw.",
            rich_help_panel=PICKING,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            "--repetition-penalty",
            metavar="X",
            help="Above 1: tokens already in the sequence become less likely.",
            rich_help_panel=PICKING,
        ),
    ] = None,
    num_return_sequences: Annotated[
        int | None,
        typer.Option(
            "--num-return-sequences",
            metavar="N",
            help="Continuations of each prompt.",
            rich_help_panel=PICKING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            help="The same seed gives the same text; by default Global.seed.",
            rich_help_panel=PICKING,
        ),
    ] = None,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", metavar="", help="Compute every step from the start: slow, for checks."
        ),
    ] = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue prompts with a checkpoint, streaming the text to stdout.

    `--json` prints a list of {prompt, text, tokens, finish_reason}: `text` is the continuation,
    `tokens` are its ids.

    **Examples**

    `fastffn generate "Once upon a time" --max-tokens 60 --seed 1`

    `fastffn generate --model runs/demo --file prompts.txt --json`

    `echo "The king" | fastffn generate --greedy`
    """
    from fastffn_cli.engine.checkpoint import Verification, load_model
    from fastffn_cli.engine.device import use_device
    from fastffn_cli.engine.find import find_checkpoint
    from fastffn_cli.generation.prompts import gather_texts

    if prompt_ids and (prompts or file):
        raise UserError("give the prompts either as text or as --prompt-ids")
    texts = [] if prompt_ids else gather_texts(prompts or [], file)
    path = find_checkpoint(model, action="generate with")
    verification = Verification(path)  # while paddle is imported
    use_device(device or "auto")

    loaded = load_model(path, verification)
    ui.say(f"generating with {path} (step {loaded.step:,})")
    options = _choose_options(
        loaded.config,
        decode_strategy=None if greedy is None else "greedy_search" if greedy else "sampling",
        max_dec_len=max_tokens,
        min_dec_len=min_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num_return_sequences=num_return_sequences,
        seed=seed,
    )
    encoded = _encode(loaded, texts, prompt_ids or [])
    started = time.perf_counter()
    generations = _generate(loaded, encoded, options, use_cache=not no_cache, as_json=as_json)
    _say_statistics(encoded, generations, options, time.perf_counter() - started)
    positions = loaded.model.config.max_position_embeddings
    if any(
        each.finish_reason == "length" and len(each.tokens) < options.max_dec_len
        for each in generations
    ):
        ui.notice(f"stopped at the model's last position ({positions:,} tokens with the prompt)")


def _choose_options(config: Config, **given: object) -> SamplingOptions:
    """Take what the user gave, and the rest from the `Generation` section."""
    from fastffn_cli.generation.sampling import SamplingOptions

    section = config.Generation
    values: dict[str, object] = {
        name: value if value is not None else getattr(section, name)
        for name, value in given.items()
        if name != "seed"
    }
    # A configured bound yields to the other one when that was typed.
    if given["min_dec_len"] is None and given["max_dec_len"] is not None:
        values["min_dec_len"] = min(section.min_dec_len, max(0, _as_int(given["max_dec_len"])))
    if given["max_dec_len"] is None and given["min_dec_len"] is not None:
        values["max_dec_len"] = max(section.max_dec_len, _as_int(given["min_dec_len"]))
    values["seed"] = given["seed"] if given["seed"] is not None else config.Global.seed
    return SamplingOptions(**values)  # type: ignore[arg-type]


def _as_int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _encode(loaded: LoadedModel, texts: list[str], prompt_ids: list[str]) -> list[Prompt]:
    """Turn prompts into ids with the checkpoint's own tokenizer."""
    from fastffn_cli.generation.prompts import encode_prompts, parse_prompt_ids

    if prompt_ids:
        return parse_prompt_ids(prompt_ids, loaded.tokenizer)
    if loaded.tokenizer is None:
        raise UserError(
            f"{loaded.path} has no tokenizer: it cannot read text",
            hint='Give token ids instead: --prompt-ids "1 2 3"',
        )
    return encode_prompts(texts, loaded.tokenizer)


def _choose_eos(loaded: LoadedModel) -> int | None:
    """The token that ends a text: of the tokenizer, the configuration, or the data of the run."""
    if loaded.tokenizer is not None:
        return loaded.tokenizer.eos_id
    if loaded.config.Data.dataset.eos_id is not None:
        return loaded.config.Data.dataset.eos_id
    recorded = loaded.trainer.get("data", {}).get("eos_id")
    return None if recorded is None else int(recorded)


def _generate(
    loaded: LoadedModel,
    prompts: list[Prompt],
    options: SamplingOptions,
    *,
    use_cache: bool,
    as_json: bool,
) -> list[Generation]:
    """Generate and write: streamed when there is one sequence, else each one when it is ready."""
    from fastffn_cli.generation.generate import iterate_generations
    from fastffn_cli.generation.writing import StreamWriter, as_record, write_block

    tokenizer, eos_id = loaded.tokenizer, _choose_eos(loaded)
    single = len(prompts) * options.num_return_sequences == 1
    writer = StreamWriter(prompts[0], tokenizer) if single and not as_json else None
    stream = iterate_generations(
        loaded.model,
        [prompt.ids for prompt in prompts],
        options,
        eos_id=eos_id,
        use_cache=use_cache,
        num_tokens=tokenizer.vocab_size if tokenizer is not None else None,
        on_token=writer.on_token if writer is not None else None,
    )
    if writer is not None:
        writer.begin()
    generations = []
    for generation in stream:
        generations.append(generation)
        if writer is not None:
            writer.finish()
        elif not as_json:
            write_block(prompts[generation.prompt_index], generation, tokenizer, eos_id)
    if as_json:
        ui.data_json(
            [as_record(prompts[each.prompt_index], each, tokenizer, eos_id) for each in generations]
        )
    return generations


def _say_statistics(
    prompts: list[Prompt],
    generations: list[Generation],
    options: SamplingOptions,
    seconds: float,
) -> None:
    """Say on stderr how much was written and how fast, prompts read included."""
    new = sum(len(each.tokens) for each in generations)
    read = sum(len(prompt.ids) for prompt in prompts)
    parts = [f"{new:,} tokens", f"{new / max(seconds, 1e-9):,.0f} tok/s", f"prompt {read:,} tokens"]
    if len(generations) > 1:
        parts.insert(0, f"{len(generations):,} texts")
    parts.append("greedy" if options.greedy else f"seed {options.seed}")
    ui.say(" · ".join(parts))
