"""A tree against the schema: every problem at once, and a valid `Config` of the rest."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fastffn_cli.config.ffn import FFN_KINDS
from fastffn_cli.config.fleetx_keys import FOREIGN, FOREIGN_BLOCKS
from fastffn_cli.config.keys import Key, all_keys, leaf_keys, sections, suggest_key
from fastffn_cli.config.mindformers_keys import ALIASES, KEYS, MARKS
from fastffn_cli.config.origin import DEFAULT, Origin, Problem
from fastffn_cli.config.scalars import parse_scalar
from fastffn_cli.config.schema import Config
from fastffn_cli.config.yaml_tree import Branch

# The key that a value in place of its whole block was meant for.
_MAIN_KEY = {
    "Model.ffn": "kind",
    "Optimizer.lr": "max_lr",
    "Data.dataset": "input_dir",
    "Data.batch_size": "global_batch_size",
}
NO_NAMES: Mapping[str, str] = MappingProxyType({})
_DEVICES = ("auto", "cpu", "gpu", "npu", "gpu:0", "npu:0")
_WORDS_FOR_TRUE = {"yes", "on", "y"}
_WORDS_FOR_FALSE = {"no", "off", "n"}
# What people write for a choice, where no likeness of letters leads to it.
_OTHER_NAMES = {
    "fp16": "float16", "bf16": "bfloat16", "adam": "AdamW", "fusedadamw": "AdamW",
    "cosineannealingwithwarmupdecay": "cosine", "lineardecaywithwarmup": "linear",
    "cuda": "gpu", "cuda:0": "gpu:0", "ascend": "npu",
    "quick_gelu": "fast_gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu",
    "greedy": "greedy_search", "sample": "sampling", "lowrank": "low_rank", "low-rank": "low_rank",
}  # fmt: skip


def validate_tree(
    tree: Branch, problems: list[Problem], written: Mapping[str, str] = NO_NAMES
) -> tuple[Config, set[str]]:
    """Return a Config of everything valid in the tree, and the dotted keys that were not.

    `written` has the names of keys that the user called otherwise.
    """
    values = tree.plain()
    invalid: set[str] = set()
    _complete_ffn(values)
    while True:
        try:
            return Config.model_validate(values), invalid
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                path = _path_of(detail)
                if not _remove(values, path):
                    raise  # our own mistake: a loop without this
                problems.append(
                    Problem(origin_of(tree, path), _explain(detail, path, tree, written))
                )
                invalid.add(".".join(path))


def origin_of(tree: Branch, path: tuple[str, ...]) -> Origin:
    """Return where the value at `path` stands, or the nearest block around it that was written."""
    for length in range(len(path), 0, -1):
        if node := tree.find(path[:length]):
            return node.origin
    return DEFAULT


def _complete_ffn(values: dict[str, Any]) -> None:
    """Options without a kind belong to the default kind, dense."""
    model = values.get("Model")
    ffn = model.get("ffn") if isinstance(model, dict) else None
    if isinstance(ffn, dict):
        ffn.setdefault("kind", "dense")


def _path_of(detail: ErrorDetails) -> tuple[str, ...]:
    """Return the dotted path of an error, without list positions and names of union members."""
    names = list(detail["loc"])
    if names[:2] == ["Model", "ffn"] and len(names) > 2 and names[2] in FFN_KINDS:
        del names[2]
    if detail["type"] == "union_tag_invalid":
        names.append("kind")
    words = [name for name in names if isinstance(name, str)]
    return tuple(words)


def _remove(values: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Remove an invalid value; True also when its block went before it."""
    if path == ("Model", "ffn", "kind"):
        path = ("Model", "ffn")
    inner: Any = values
    for name in path[:-1]:
        if not isinstance(inner, dict) or name not in inner:
            return True
        inner = inner[name]
    if isinstance(inner, dict):
        inner.pop(path[-1], None)
        return True
    return False


def _explain(
    detail: ErrorDetails, path: tuple[str, ...], tree: Branch, written: Mapping[str, str]
) -> str:
    dotted = ".".join(path)
    name = written.get(dotted, dotted)
    given = detail["input"]
    key = all_keys().get(dotted)
    if detail["type"] == "extra_forbidden":
        return _explain_unknown(dotted, key, tree)
    if detail["type"] == "union_tag_invalid":
        given = detail["ctx"]["tag"]
        node = tree.find(path)
        given = node.plain() if isinstance(node, Branch) else node.value if node else given
        names = ", ".join(repr(name) for name in FFN_KINDS)
        return f"'{dotted}' must be one of {names}, not {show(given)}{_near(given, FFN_KINDS)}"
    if detail["type"] == "value_error":
        return f"'{name}' {detail['ctx']['error']}, not {show(given)}{_near(given, _DEVICES)}"
    assert key is not None, dotted
    if isinstance(detail["loc"][-1], int):
        node = tree.find(path)
        whole = node.plain() if isinstance(node, Branch) else node.value if node else given
        return f"'{name}' must be {key.expected}, not {show(whole)}{_near(given, key.choices)}"
    return f"'{name}' must be {key.expected}, not {show(given)}{remedy(key, given)}"


def _also(kinds: tuple[str, ...]) -> str:
    return f" ({', '.join(kinds)} {'have' if len(kinds) > 1 else 'has'} it, too)" if kinds else ""


def _explain_unknown(dotted: str, key: Key | None, tree: Branch) -> str:
    if key is not None and key.kinds:
        node = tree.find(("Model", "ffn", "kind"))
        kind = "dense" if node is None or isinstance(node, Branch) else node.value
        return (
            f"'{dotted}' is not an option of the feed-forward kind '{kind}': remove it, or set "
            f"Model.ffn.kind: {key.kinds[0]}{_also(key.kinds[1:])}"
        )
    if "." not in dotted:
        whole = _whole_path(dotted, tree)
        if theirs := _explain_mindformers(dotted, whole):
            return theirs
        if hint := suggest_key(whole) or suggest_key(dotted):
            what = "key" if "." in hint else "section"
            return f"unknown {what} '{whole if '.' in hint else dotted}'.{hint}"
        near = difflib.get_close_matches(dotted, FOREIGN_BLOCKS, 1, 0.75)
        if near:
            return f"unknown section '{dotted}'. Did you mean '{near[0]}'?"
        return f"unknown section '{dotted}'. Sections: {', '.join(sections())}"
    return f"unknown key '{dotted}'.{_suggest(dotted) or _list_siblings(dotted)}"


def _explain_mindformers(section: str, whole: str) -> str:
    """Tell of MindFormers' spelling of an override on a file that is not MindFormers'."""
    rule = KEYS.get(ALIASES.get(whole, whole)) if "." in whole else None
    if rule is None and section not in MARKS:
        return ""
    ours = (
        f"type {rule.to}"
        if rule and isinstance(rule.to, str)
        else "`fastffn config` lists our keys"
    )
    return f"'{whole}' is MindFormers' spelling, for MindFormers' own files: {ours}"


def _suggest(dotted: str) -> str:
    """Suggest a key of the schema, or one of FleetX's that is even more like it."""
    parent, _, name = dotted.rpartition(".")
    siblings = {
        path.rpartition(".")[2]: path in all_keys()
        for path in (*FOREIGN, *FOREIGN_BLOCKS, *all_keys())
        if path.rpartition(".")[0] == parent
    }
    near = difflib.get_close_matches(name, siblings, 1, 0.75)
    if near and not siblings[near[0]]:
        return f" Did you mean '{parent}.{near[0]}'?"
    return suggest_key(dotted)


def _whole_path(section: str, tree: Branch) -> str:
    """Return the key that an override meant: its unknown section is only the head of it."""
    node = tree.find((section,))
    if node is None or node.origin.kind != "override":
        return section
    path = section
    while isinstance(node, Branch) and len(node.entries) == 1:
        name, node = next(iter(node.entries.items()))
        path += f".{name}"
    return path


def _list_siblings(dotted: str) -> str:
    """Name the keys of the block, when nothing in it is like the unknown one."""
    parent = dotted.rpartition(".")[0]
    names = [key.name for path, key in all_keys().items() if path.rpartition(".")[0] == parent]
    return f" '{parent}' has: {', '.join(names)}" if names else ""


def remedy(key: Key, given: Any) -> str:
    """Say what to type instead, where a certain slip is likely."""
    expected = key.expected
    inner = _MAIN_KEY.get(key.path)
    if inner and leaf_keys()[f"{key.path}.{inner}"].accepts(given):
        return f". Write {key.name}: {{{inner}: {_yaml_word(given)}}}"
    if isinstance(given, str):
        if expected == "true or false":
            word = given.lower()
            if word in _WORDS_FOR_TRUE | _WORDS_FOR_FALSE:
                value = "true" if word in _WORDS_FOR_TRUE else "false"
                return f". In YAML 1.2 {given} is text: write {value}"
            if word in ("true", "false"):
                return f". Remove the quotes: {word}"
        if expected.startswith(("an integer", "a number")):
            return _number_remedy(given)
        if expected == "a block of keys" and re.match(r"\w+:\S", given):
            return ". Write a space after the colon"
        if expected.startswith("a list"):
            return f". Write [{given}]"
        return _near(given, key.choices)
    if expected.startswith("text") and isinstance(given, (int, float)):
        return f". Put it in quotes: '{_yaml_word(given)}'"
    if expected.startswith("a list") and isinstance(given, (int, float)):
        return f". Write [{_yaml_word(given)}]"
    return ""


def _number_remedy(given: str) -> str:
    for text in (given, given.strip(), re.sub(r"[_, ]", "", given)):
        value = parse_scalar(text)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return f". Remove the quotes: {text}" if text == given else f". Write {text}"
    return ""


def _near(given: Any, choices: Any) -> str:
    names = [name for name in choices if isinstance(name, str)]
    if not isinstance(given, str) or not names:
        return ""
    if given == "beam_search":
        return ". Beam search is not in this version"
    lowered = {name.lower(): name for name in names}
    other = _OTHER_NAMES.get(given.lower())
    found = [other] if other in names else []
    found = found or [
        lowered[word] for word in difflib.get_close_matches(given.lower(), lowered, 1, 0.6)
    ]
    return f". Did you mean '{found[0]}'?" if found else ""


def show(value: Any) -> str:
    """Show a wrong value as it would be written, with its type."""
    if isinstance(value, dict):
        return "a block of keys"
    if isinstance(value, (list, tuple)):
        shown = "[" + ", ".join(_yaml_word(item) for item in value) + "]"
        return f"{shown} (list)"
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "..."
        return f"{short!r} (str)"
    return f"{_yaml_word(value)} ({type(value).__name__})"


def _yaml_word(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)
