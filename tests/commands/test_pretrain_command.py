"""`fastffn pretrain`: what people see, what is written, and what is never touched."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastffn_cli.engine import storage
from fastffn_cli.engine.checkpoint import read_checkpoint
from fastffn_cli.engine.run import read_metrics, series
from tests.conftest import Outcome, TrainedRun, Workplace
from tests.engine.runs import assert_same_state

# The seed document's log lines, made in July 2022 by FleetX.
SEED_LINE = re.compile(
    r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\] \[    INFO\] - global step \d+, epoch: \d+, "
    r"batch: \d+, loss: \d+\.\d{9}, avg_reader_cost: \d+\.\d{5} sec, avg_batch_cost: \d+\.\d{5} "
    r"sec, speed: \d+\.\d\d step/s, ips_total: \d+ tokens/s, ips: \d+ tokens/s, "
    r"learning rate: \d\.\d{5}e[-+]\d\d$"
)

Program = Callable[..., Outcome]


def contents(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_run_folder_holds_what_the_contract_says(trained_run: TrainedRun) -> None:
    assert {path.name for path in trained_run.dir.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "log.txt", "loss.png", "checkpoints"),
    }
    names = {path.name for path in (trained_run.dir / "checkpoints").iterdir()}
    assert names == {"step-00000004", "step-00000008", "latest"}
    latest = (trained_run.dir / "checkpoints" / "latest").read_text(encoding="utf-8")
    assert latest == "step-00000008\n"
    assert {path.name for path in trained_run.checkpoint_dir.iterdir()} == {
        *("model.safetensors", "optimizer.safetensors", "trainer.json", "config.yaml"),
        *("tokenizer.json", "tokenizer_meta.json", "manifest.json"),
    }


def test_talk_goes_to_stderr_and_stdout_stays_empty(trained_run: TrainedRun) -> None:
    assert trained_run.stdout == ""
    assert "fastffn pretrain" in trained_run.stderr  # the run card
    assert "next        fastffn convert runs/tiny/checkpoints/step-00000008" in trained_run.stderr


def test_every_log_line_has_the_form_of_the_seed_log(trained_run: TrainedRun) -> None:
    log = (trained_run.dir / "log.txt").read_text(encoding="utf-8").splitlines()
    steps = [line for line in log if "global step" in line]

    assert len(steps) == 8
    assert all(SEED_LINE.match(line) for line in steps), steps
    assert all(line in trained_run.stderr for line in log)


def test_metrics_have_one_record_an_event_with_the_documented_fields(
    trained_run: TrainedRun,
) -> None:
    records = read_metrics(trained_run.dir)
    events = [record["event"] for record in records]
    train = [record for record in records if record["event"] == "train"]

    half = ["train"] * 4 + ["eval", "checkpoint"]
    assert events == ["start", *half, *half, "end"]
    assert [record["step"] for record in train] == list(range(1, 9))
    assert {
        *("event", "step", "epoch", "loss", "learning_rate", "grad_norm", "tokens"),
        *("tokens_per_s", "step_s", "reader_s", "time"),
    } == train[0].keys()
    assert [record["tokens"] for record in train] == [256 * step for step in range(1, 9)]
    assert train[0]["tokens_per_s"] is None  # the first step builds kernels: no honest speed
    assert all(record["tokens_per_s"] > 0 for record in train[1:])
    evaluation = next(record for record in records if record["event"] == "eval")
    assert evaluation["ppl"] == pytest.approx(np.exp(evaluation["loss"]))
    assert {"event", "step", "loss", "ppl", "tokens", "time"} == evaluation.keys()


def test_the_loss_falls(trained_run: TrainedRun) -> None:
    losses = [loss for _, loss in series(read_metrics(trained_run.dir), "train", "loss")]
    assert losses[-1] < losses[0] - 0.2


def test_the_summary_speed_leaves_out_the_first_step_evaluation_and_checkpoints(
    trained_run: TrainedRun,
) -> None:
    records = read_metrics(trained_run.dir)
    warm = [record for record in records if record["event"] == "train"][1:]
    seconds = sum(record["step_s"] for record in warm)

    end = records[-1]
    assert end["tokens_per_s"] == pytest.approx(256 * len(warm) / seconds)
    assert f"{end['tokens_per_s']:,.0f} tokens/s" in trained_run.stderr.splitlines()[-4]


def test_a_checkpoint_knows_where_it_is(trained_run: TrainedRun) -> None:
    trainer = read_checkpoint(trained_run.checkpoint_dir).trainer

    assert (trainer["step"], trainer["cursor"], trainer["tokens"]) == (8, 64, 2048)
    assert trainer["stage"] == "pretrain"
    assert trainer["ffn"]["kind"] == "low_rank"
    assert trainer["schedule"]["decay_steps"] == 20
    assert trainer["seed"] == 7
    assert trainer["scaler"] is None


def test_a_second_run_in_the_same_folder_is_refused_before_anything_else(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun
) -> None:
    shutil.copytree(trained_run.dir, workplace.run_dir)
    before = contents(workplace.run_dir)

    refused = fastffn("pretrain", "-c", "tiny.yaml")

    assert refused.code == 2
    assert "runs/tiny holds a run already (step 8, newest checkpoint step-00000008)" in refused.err
    assert "--resume" in refused.err
    assert "parameters" not in refused.err  # no run card for a run that will not be
    assert contents(workplace.run_dir) == before


def test_a_run_is_not_begun_among_files_of_another_purpose(
    fastffn: Program, workplace: Workplace
) -> None:
    (workplace.dir / "config.yaml").write_text("mine: true\n", encoding="utf-8")

    refused = fastffn("pretrain", "-c", "tiny.yaml", "-o", "Engine.save_load.output_dir=.")

    assert refused.code == 2
    assert "has a config.yaml that no run wrote" in refused.err
    assert (workplace.dir / "config.yaml").read_text(encoding="utf-8") == "mine: true\n"


def test_dry_run_writes_nothing_and_prints_to_stdout(
    fastffn: Program, workplace: Workplace
) -> None:
    before = sorted(workplace.dir.rglob("*"))

    done = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run")

    assert done.code == 0, done.err
    assert sorted(workplace.dir.rglob("*")) == before
    for label in ("parameters", "compute", "budget", "memory", "checkpoints"):
        assert label in done.out
    assert "nothing was written" in done.err


@pytest.mark.parametrize("kind", ["low_rank", "dense"])
def test_dry_run_counts_the_parameters_that_the_built_model_has(
    fastffn: Program, kind: str
) -> None:
    from fastffn_cli.ui import number
    from models.gpt import GPT, GPTConfig

    sizes = {
        **{"vocab_size": 257, "hidden_size": 48, "num_layers": 3, "num_attention_heads": 4},
        **{"ffn_hidden_size": 100, "max_position_embeddings": 32},
    }
    models = {
        "low_rank": GPT(GPTConfig(**sizes, ffn={"kind": "low_rank", "rank": 4})),
        "dense": GPT(GPTConfig(**sizes)),
    }
    own, dense = (
        sum(int(np.prod(p.shape)) for p in models[name].parameters()) for name in (kind, "dense")
    )
    overrides = ["Model.hidden_size=48", "Model.num_layers=3", "Model.ffn_hidden_size=100"]
    if kind == "dense":
        overrides.append("Model.ffn={kind: dense}")

    done = fastffn(
        "pretrain", "-c", "tiny.yaml", "--dry-run", *(w for o in overrides for w in ("-o", o))
    )

    assert done.code == 0, done.err
    shown = re.sub(r"\s+", " ", done.out)
    assert f"parameters {number(own)}" in shown
    if kind == "low_rank":
        assert f"(dense {number(dense)}, {100 * (own / dense - 1):+.1f} %)" in shown


def test_dry_run_of_an_existing_run_only_notes_it(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun
) -> None:
    shutil.copytree(trained_run.dir, workplace.run_dir)

    done = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run")

    assert done.code == 0
    assert "runs/tiny holds a run already" in done.err


def test_resume_of_a_complete_run_says_so(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun
) -> None:
    shutil.copytree(trained_run.dir, workplace.run_dir)
    before = contents(workplace.run_dir)

    for words in (["--resume"], ["--resume", "auto"], ["--resume", "runs/tiny"]):
        done = fastffn("pretrain", "-c", "tiny.yaml", *words)
        assert done.code == 0, done.err
        assert "runs/tiny is complete: step 8 of 8" in done.err
    assert contents(workplace.run_dir) == before


def test_resume_of_nothing_begins_a_run(fastffn: Program, workplace: Workplace) -> None:
    done = fastffn("pretrain", "-c", "tiny.yaml", "--resume", "-o", "Engine.max_steps=1")

    assert done.code == 0, done.err
    assert (workplace.run_dir / "checkpoints" / "step-00000001" / "manifest.json").exists()


def test_resume_of_a_run_without_a_checkpoint_begins_it_again(
    fastffn: Program, workplace: Workplace
) -> None:
    (workplace.run_dir / "checkpoints").mkdir(parents=True)
    (workplace.run_dir / "metrics.jsonl").write_text('{"event": "start", "st', encoding="utf-8")

    done = fastffn("pretrain", "-c", "tiny.yaml", "--resume", "-o", "Engine.max_steps=1")

    assert done.code == 0, done.err
    assert "has no checkpoint yet: its run starts from step 0" in done.err
    assert [step for step, _ in series(read_metrics(workplace.run_dir), "train", "loss")] == [1]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "--resume nowhere: there is no such folder"),
        (".", "is not a run folder"),
        ("runs/tiny/checkpoints/step-00000004", "the run has gone on to"),
    ],
)
def test_resume_of_the_wrong_folder_is_refused(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun, target: str, message: str
) -> None:
    shutil.copytree(trained_run.dir, workplace.run_dir)

    refused = fastffn("pretrain", "-c", "tiny.yaml", "--resume", target)

    assert refused.code == 2
    assert message in refused.err


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("Model.ffn.rank=8", "Model.ffn.rank was 4, is 8"),
        ("Global.seed=8", "Global.seed was 7, is 8"),
        ("Data.dataset.split=90/5/5", "Data.dataset.split was 80,15,5, is 90,5,5"),
        ("Data.dataset.max_seq_len=16", "Data.dataset.max_seq_len was 32, is 16"),
    ],
)
def test_resume_refuses_what_would_make_it_another_run(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun, override: str, name: str
) -> None:
    shutil.copytree(trained_run.dir, workplace.run_dir)

    refused = fastffn("pretrain", "-c", "tiny.yaml", "--resume", "-o", override)

    assert refused.code == 2
    assert "cannot be continued with this configuration" in refused.err
    assert name in refused.err


def test_resume_notes_a_changed_learning_rate(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun
) -> None:
    shutil.copytree(trained_run.dir, workplace.run_dir)

    done = fastffn(
        "pretrain", "-c", "tiny.yaml", "--resume", "--dry-run", "-o", "Optimizer.lr.max_lr=2e-3"
    )

    assert done.code == 0
    assert "Optimizer.lr.max_lr changed since the checkpoint: 0.001 -> 0.002" in done.err


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun
) -> None:
    shutil.copytree(trained_run.dir, workplace.run_dir)
    before = contents(workplace.run_dir / "checkpoints")

    failed = fastffn(
        *("pretrain", "-c", "tiny.yaml", "--resume", "-o", "Engine.max_steps=12"),
        *("-o", "Optimizer.lr.max_lr=1e30", "-o", "Optimizer.lr.name=constant"),
    )

    assert failed.code == 4, failed.err
    assert "step 10: loss is nan, weights were not updated (first: word_embeddings" in failed.err
    assert "last good checkpoint: runs/tiny/checkpoints/step-00000008" in failed.err
    assert "-o Optimizer.lr.max_lr=" in failed.err
    assert contents(workplace.run_dir / "checkpoints") == before
    assert read_metrics(workplace.run_dir)[-1]["event"] == "diverged"


def test_a_checkpoint_never_holds_weights_that_are_not_finite(
    fastffn: Program, workplace: Workplace
) -> None:
    failed = fastffn(
        *("pretrain", "-c", "tiny.yaml", "-o", "Engine.save_load.save_steps=1"),
        *("-o", "Optimizer.lr.max_lr=1e60", "-o", "Optimizer.lr.warmup_steps=0"),
        *("-o", "Engine.eval_freq=0"),
    )

    assert failed.code == 4, failed.err
    assert "step 1: the update made weights that are not finite (first: " in failed.err
    assert "no checkpoint was saved yet" in failed.err
    assert not list((workplace.run_dir / "checkpoints").glob("step-*"))


def test_a_spoiled_weight_is_named(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun
) -> None:
    folder = workplace.dir / "spoiled"
    shutil.copytree(trained_run.checkpoint_dir, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.ffn.linear2.left"][3, 1] = np.nan
    save_file(tensors, folder / "model.safetensors")
    (folder / "manifest.json").unlink()
    storage.write_manifest(folder)

    failed = fastffn("pretrain", "-c", "tiny.yaml", "-o", "Engine.save_load.ckpt_dir=spoiled")

    assert failed.code == 4, failed.err
    assert "step 1: loss is nan, weights were not updated (first: layers.1.ffn.linear2.left)" in (
        failed.err
    )


def test_half_precision_on_a_cpu_is_a_warning_and_trains_in_float32(
    fastffn: Program, workplace: Workplace
) -> None:
    done = fastffn(
        *("pretrain", "-c", "tiny.yaml", "-o", "Engine.max_steps=1"),
        *("-o", "Engine.mix_precision.use_pure_fp16=True"),
    )

    assert done.code == 0, done.err
    assert "warning" in done.err
    assert "asks for float16 O2, which Paddle silently ignores on cpu: training in float32" in (
        done.err
    )
    weights = load_file(workplace.run_dir / "checkpoints/step-00000001/model.safetensors")
    assert {array.dtype for array in weights.values()} == {np.dtype("float32")}


def test_evaluation_in_the_loop_does_not_disturb_training(
    fastffn: Program, workplace: Workplace, trained_run: TrainedRun
) -> None:
    done = fastffn("pretrain", "-c", "tiny.yaml", "-o", "Engine.eval_freq=1")
    assert done.code == 0, done.err

    assert_same_state(trained_run.checkpoint_dir, workplace.run_dir / "checkpoints/step-00000008")
    every_step = dict(series(read_metrics(workplace.run_dir), "eval", "loss"))
    assert sorted(every_step) == list(range(1, 9))
    for step, loss in series(read_metrics(trained_run.dir), "eval", "loss"):
        assert every_step[step] == loss


def test_old_checkpoints_are_deleted_and_latest_names_the_newest(
    fastffn: Program, workplace: Workplace
) -> None:
    done = fastffn(
        *("pretrain", "-c", "tiny.yaml", "-o", "Engine.max_steps=5"),
        *("-o", "Engine.save_load.save_steps=1", "-o", "Engine.save_load.keep_last=2"),
    )

    assert done.code == 0, done.err
    checkpoints = workplace.run_dir / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        *("latest", "step-00000004", "step-00000005"),
    ]
    assert (checkpoints / "latest").read_text(encoding="utf-8") == "step-00000005\n"


def test_without_max_steps_a_run_takes_its_epochs(
    fastffn: Program, trained_run: TrainedRun
) -> None:
    yaml = Path("tiny.yaml").read_text(encoding="utf-8").replace("  max_steps: 8\n", "")
    Path("tiny.yaml").write_text(yaml, encoding="utf-8")
    samples = read_checkpoint(trained_run.checkpoint_dir).trainer["data"]["num_samples"]

    done = fastffn("pretrain", "-c", "tiny.yaml", "--dry-run", "-o", "Engine.num_train_epochs=3")

    assert done.code == 0, done.err
    assert f"{3 * -(-samples // 8):,} steps" in done.out


def test_a_config_from_stdin_is_continued_from_the_run_folder(
    workplace: Workplace, trained_run: TrainedRun
) -> None:
    from fastffn_cli.config.load import load_config
    from fastffn_cli.engine.blueprint import draw_blueprint
    from fastffn_cli.engine.device import use_device
    from fastffn_cli.engine.training import continue_command

    def command(source: str, **options: str) -> str:
        resolved = load_config(source, [f"Engine.save_load.output_dir={workplace.run_dir}"])
        if source == str(workplace.config_file) and options.pop("stdin", None):
            resolved = type(resolved)(**{**vars(resolved), "source": "standard input"})
        device = use_device("cpu")
        return continue_command(draw_blueprint(resolved, device, stage="pretrain", **options))

    file = str(workplace.config_file)
    assert command(file).endswith(f"-o Engine.save_load.output_dir={workplace.run_dir} --resume")
    assert command(file, stdin="yes") == (
        f"fastffn pretrain -c {workplace.run_dir}/config.yaml --resume"
    )
    assert command(file, resume=str(trained_run.dir)).endswith(f"--resume {trained_run.dir}")


@pytest.mark.parametrize(
    ("options", "processes", "launch"),
    [
        ("--nproc 2 --log-dir 'my logs'", "2", "launch --nproc 2 --log-dir 'my logs' -- "),
        ("--nproc 1", "1", "launch --nproc 1 -- "),
        ("", "2", "launch -- "),  # by another launcher, or by the degrees
        ("", "1", ""),
    ],
)
def test_a_launched_run_is_continued_by_the_same_launch(
    workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    options: str,
    processes: str,
    launch: str,
) -> None:
    from fastffn_cli.config.load import load_config
    from fastffn_cli.distributed import job
    from fastffn_cli.engine.blueprint import draw_blueprint
    from fastffn_cli.engine.device import use_device
    from fastffn_cli.engine.training import continue_command

    file = str(workplace.config_file)
    folder = f"Engine.save_load.output_dir={workplace.run_dir}"
    blueprint = draw_blueprint(load_config(file, [folder]), use_device("cpu"), stage="pretrain")
    monkeypatch.setenv(job.LAUNCH_OPTIONS, options)
    monkeypatch.setenv(job.WORLD_SIZE, processes)
    assert (
        continue_command(blueprint)
        == f"fastffn {launch}pretrain -c {shlex.quote(file)} -o {shlex.quote(folder)} --resume"
    )


def test_a_second_ctrl_c_says_what_is_left(
    fastffn: Program, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastffn_cli.engine.step import StepResult, TrainStep

    make_step = TrainStep.__call__
    made: list[StepResult] = []

    def step_with_impatience(self: TrainStep, *arguments: object) -> StepResult:
        made.append(make_step(self, *arguments))
        if len(made) == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return made[-1]

    monkeypatch.setattr(TrainStep, "__call__", step_with_impatience)
    done = fastffn("pretrain", "-c", "tiny.yaml", "-o", "Engine.save_load.save_steps=4")
    assert done.code == 130
    assert "stopped at once" in done.err
    assert (
        "The newest checkpoint is runs/tiny/checkpoints/step-00000004. Continue with:" in done.err
    )
    assert "fastffn pretrain -c tiny.yaml" in done.err


def test_metrics_lines_are_json(trained_run: TrainedRun) -> None:
    for line in (trained_run.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        assert isinstance(json.loads(line)["time"], float)


def test_the_next_command_can_be_pasted_where_a_path_has_spaces(
    fastffn: Program,
) -> None:
    short = ("-o", "Engine.max_steps=1", "-o", "Engine.eval_freq=0")
    done = fastffn("pretrain", "-c", "tiny.yaml", *short, "-o", "Engine.save_load.output_dir=a run")
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.strip().startswith("next ")]
    program, command, path = shlex.split(line.strip().removeprefix("next"))
    assert (program, command, path) == ("fastffn", "convert", "a run/checkpoints/step-00000001")
