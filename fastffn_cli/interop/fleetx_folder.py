"""Where FleetX and PaddleNLP put a checkpoint: one file, or one a parallel rank.

| system | folder | files |
|---|---|---|
| FleetX, July 2022 | model_{step} | model.pdparams |
| FleetX, August 2022 | step_{step} | model.pdparams, meta_state.pdopt {global_step} |
| PaddleFleetX (ppfleetx) | epoch_{e}_step_{step} | the same, meta_state.pdopt {epoch, step, ...} |
| both, several cards | ... / mp_00_sharding_00_pp_00 | the same, in a folder a rank |
| PaddleNLP | any | model_state.pdparams, config.json or model_config.json |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastffn_cli.errors import CheckpointError
from fastffn_cli.interop.pickled import read_pickle

WEIGHTS = ("model.pdparams", "model_state.pdparams")
SUFFIX = ".pdparams"
META_FILE = "meta_state.pdopt"
RANK = re.compile(r"mp_(\d+)_sharding_(\d+)_pp_(\d+)")
STEP = re.compile(r"(?:step|model)_(\d+)")
SHOWN = 8


@dataclass(frozen=True, order=True)
class Rank:
    """A place in the grid of parallel processes."""

    tensor: int = 0
    sharding: int = 0
    pipeline: int = 0

    def __str__(self) -> str:
        return f"mp_{self.tensor:02d}_sharding_{self.sharding:02d}_pp_{self.pipeline:02d}"


@dataclass(frozen=True)
class Found:
    """A checkpoint: its folder, and the file of each rank."""

    folder: Path
    files: Mapping[Rank, Path]

    @property
    def first(self) -> Path:
        """File of the first rank."""
        return self.files[min(self.files)]


def find_checkpoint_files(path: Path) -> list[Found]:
    """Find what checkpoints are at `path`: a file, its folder, or the folder of one or several.

    Empty where there are none. Raises `CheckpointError` for a file that is one of several parts and
    for a folder whose files leave open which one is meant.
    """
    if path.is_file():
        return [_of_file(path)]
    found = _of_folder(path)
    if found is None and path.is_dir():
        children = sorted(child for child in path.iterdir() if child.is_dir())
        return [each for each in map(_of_folder, children) if each is not None]
    return [] if found is None else [found]


def _of_file(file: Path) -> Found:
    file = file.absolute()
    if RANK.fullmatch(file.parent.name):
        return _of_rank(file.parent, file)
    return Found(file.parent, {Rank(): file})


def _of_folder(folder: Path) -> Found | None:
    file = _file_in(folder)
    if file is None:
        ranks = _ranks(folder)
        return Found(folder, ranks) if ranks else None
    if RANK.fullmatch(folder.absolute().name):
        return _of_rank(folder.absolute(), file)
    return Found(folder, {Rank(): file})


def _of_rank(folder: Path, file: Path) -> Found:
    """A rank's folder alone is a checkpoint if there is no other one beside it."""
    ranks = _ranks(folder.parent)
    if len(ranks) > 1:
        raise CheckpointError(
            f"{folder} is one of {len(ranks)} parts of a checkpoint",
            hint=f"Name the folder that holds them all: {folder.parent}",
        )
    return Found(folder.parent, {Rank(): file})


def _file_in(folder: Path) -> Path | None:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    files = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} holds several files of weights: {_listed([file.name for file in files])}",
            hint=f"Name the one that is meant, such as {files[0]}",
        )
    return files[0] if files else None


def _ranks(folder: Path) -> dict[Rank, Path]:
    """Files of the ranks in a folder, also of those that should have one and have none."""
    ranks = {}
    for child in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = RANK.fullmatch(child.name)
        if match and child.is_dir():
            ranks[Rank(*map(int, match.groups()))] = _file_in(child) or child / WEIGHTS[0]
    return ranks


def choose_only(path: Path, found: list[Found]) -> Found:
    """Return the only checkpoint at `path`; raises `CheckpointError` listing several."""
    if len(found) > 1:
        names = _listed([each.folder.name for each in found])
        raise CheckpointError(
            f"{path} holds {len(found)} checkpoints: {names}",
            hint=f"Name the one that is meant, such as {found[-1].folder}",
        )
    return found[0]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def read_step(found: Found) -> tuple[int, str | None]:
    """Return the step that a checkpoint was written at, and a notice if its own record is not read.

    The record of FleetX on a GPU holds the state of its random numbers as an object, which is not
    admitted; the name of the folder says the same.
    """
    file, notice = found.first.parent / META_FILE, None
    if file.is_file():
        try:
            meta = read_pickle(file)
            for key in ("global_step", "step"):
                if isinstance(meta, dict) and type(meta.get(key)) is int and meta[key] >= 0:
                    return meta[key], None
            reason = f"{file} does not tell the step"
        except CheckpointError as error:
            reason = error.message
        notice = f"the step is taken from the folder's name: {reason}"
    match = STEP.search(found.folder.absolute().name)
    if match is None:
        return 0, notice and notice.replace("taken from the folder's name", "not known")
    return int(match[1]), notice
