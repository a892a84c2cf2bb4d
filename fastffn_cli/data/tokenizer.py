"""Text to token ids and back, over the `tokenizers` library.

Everything a tokenizer is lives in two files beside the tokens and the checkpoints: `tokenizer.json`
(the library's own format) and `tokenizer_meta.json` (name, end-of-text token). Special tokens in a
text, such as a literal `<|endoftext|>`, are ordinary characters here: only `prepare` and the
generator place the end-of-text id, so no text can forge a document boundary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from fastffn_cli.errors import DataError

META_VERSION = 1
TOKENIZER_FILE = "tokenizer.json"
META_FILE = "tokenizer_meta.json"
CONFIG_FILE = "tokenizer_config.json"  # Hugging Face's
END_OF_TEXT = "<|endoftext|>"
BYTES = "bytes"

# Pairs of vocabulary and merges, as transformers and as OpenAI name them.
GPT2_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
# In this order the first one that a tokenizer knows ends its documents.
EOS_TOKENS = (
    END_OF_TEXT,
    "</s>",
    "<eos>",
    "<|end_of_text|>",
    "<|endofdoc|>",
    "[EOS]",
    "<|im_end|>",
)


class Tokenizer:
    """A tokenizer with an end-of-text token.

    Attributes: `name`, `vocab_size` (one above the largest id), `eos_token`, `eos_id`,
    `is_bytes` (ids 0..255 are the bytes of the UTF-8 text).
    """

    def __init__(
        self,
        engine: tokenizers.Tokenizer,
        *,
        name: str,
        eos_token: str,
        is_bytes: bool = False,
    ) -> None:
        # A saved file may carry limits of the model it was written for: they would silently cut
        # or pad every document.
        engine.no_truncation()
        engine.no_padding()
        eos_id = engine.token_to_id(eos_token)
        if eos_id is None:
            raise DataError(f"the tokenizer {name} has no token {eos_token!r}")
        # Registered as special, so that `skip_special` drops it and text cannot contain it.
        engine.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
        engine.encode_special_tokens = True
        self.name = name
        self.eos_token = eos_token
        self.eos_id: int = eos_id
        self.is_bytes = is_bytes
        self.vocab_size: int = max(engine.get_vocab(with_added_tokens=True).values()) + 1
        self._engine = engine

    def encode(self, text: str) -> list[int]:
        """Give the ids of `text`; no token is added, none is special. DataError: not UTF-8."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Give the ids of each text. Releases the GIL, so that several threads may call it."""
        if self.is_bytes:
            return [list(_utf8(text)) for text in texts]
        try:
            batch = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            # The library's word for a text that is not Unicode; ours names the character.
            for text in texts:
                _utf8(text)
            raise
        rows: list[list[int]] = [encoding.ids for encoding in batch]
        for index, text in enumerate(texts):
            if self.eos_token in text and self.eos_id in rows[index]:
                rows[index] = self._encode_without_eos(text)
        return rows

    def _encode_without_eos(self, text: str) -> list[int]:
        """Encode a text that quotes the end-of-text token, for models whose vocabulary has it.

        Some models (Unigram, WordPiece) find `</s>` in their ordinary vocabulary; cutting the
        literal in two keeps the user's characters from becoming a document boundary.
        """
        middle = max(1, len(self.eos_token) // 2)
        head, tail = self.eos_token[:middle], self.eos_token[middle:]
        parts = text.split(self.eos_token)
        pieces = [
            (tail if index else "") + part + (head if index + 1 < len(parts) else "")
            for index, part in enumerate(parts)
        ]
        batch = self._engine.encode_batch_fast(pieces, add_special_tokens=False)
        return [token for encoding in batch for token in encoding.ids]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Give the text of `ids`; bytes that are no UTF-8 become U+FFFD, unknown ids nothing.

        The exact inverse of `encode` for byte-level tokenizers (`bytes`, `train:N`, GPT-2). A
        streaming writer holds back a trailing U+FFFD: the next ids may complete the character.
        """
        numbers = [int(token) for token in ids]
        return str(self._engine.decode(numbers, skip_special_tokens=skip_special))

    def token_text(self, token_id: int) -> str | None:
        """Give the vocabulary's own spelling of an id (`Ġthe`), or None if it has none."""
        text = self._engine.id_to_token(int(token_id))
        return None if text is None else str(text)

    def library_json(self) -> str:
        """Give the content of `tokenizer.json`."""
        return str(self._engine.to_str(pretty=True))

    def save(self, tokenizer_dir: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_meta.json` into an existing or new folder."""
        tokenizer_dir.mkdir(parents=True, exist_ok=True)
        self._engine.save(str(tokenizer_dir / TOKENIZER_FILE))
        meta = {
            "format_version": META_VERSION,
            "name": self.name,
            "kind": BYTES if self.is_bytes else "library",
            "eos_token": self.eos_token,
            "eos_id": self.eos_id,
            "vocab_size": self.vocab_size,
        }
        (tokenizer_dir / META_FILE).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    @staticmethod
    def load(path: Path, *, eos_token: str | None = None) -> Tokenizer:
        """Open a folder (own, Hugging Face, GPT-2 pair) or one of its files.

        `eos_token` names the end-of-text token where the files do not. DataError: no tokenizer
        there, a broken one, or no known end-of-text token.
        """
        path = Path(path)
        files = _find_files(path)
        folder_dir = files[0].parent
        meta = _read_object(folder_dir / META_FILE)
        engine = _open_engine(files)
        eos = eos_token or meta.get("eos_token") or _find_eos(engine, folder_dir)
        if eos is None or engine.token_to_id(eos) is None:
            wanted = f"no token {eos!r}" if eos else "no end-of-text token that fastffn knows"
            raise DataError(
                f"{path}: the tokenizer has {wanted} (looked for {', '.join(EOS_TOKENS)})",
                hint="name one of its tokens: fastffn prepare ... --eos-token '<token>'",
            )
        name = meta.get("name") or (path.stem if path.is_file() else path.resolve().name)
        return Tokenizer(engine, name=name, eos_token=eos, is_bytes=meta.get("kind") == BYTES)


def build_tokenizer(
    spec: str,
    inputs: Sequence[Path] = (),
    *,
    json_key: str = "text",
    eos_token: str | None = None,
) -> Tokenizer:
    """Make the tokenizer that `spec` names: `bytes`, `train:N`, or a folder or file.

    `inputs` (files and folders) and `json_key` are read by `train:N` only. DataError on a spec that
    is none of them.
    """
    if spec == BYTES:
        return build_bytes_tokenizer(eos_token or END_OF_TEXT)
    if spec.startswith("train:"):
        from fastffn_cli.data.tokenizer_training import train_tokenizer

        return train_tokenizer(spec, inputs, json_key=json_key, eos_token=eos_token or END_OF_TEXT)
    path = Path(spec).expanduser()
    if not path.exists():
        raise DataError(
            f"tokenizer {spec!r}: there is no such file or folder",
            hint="give bytes, train:8000, a tokenizer.json, or a folder with tokenizer.json, "
            "vocab.json + merges.txt or encoder.json + vocab.bpe",
        )
    return Tokenizer.load(path, eos_token=eos_token)


def build_bytes_tokenizer(eos_token: str = END_OF_TEXT) -> Tokenizer:
    """Make the tokenizer of 257 ids: each UTF-8 byte is its own id, end-of-text is 256."""
    letters = byte_letters()
    vocabulary = {letter: byte for byte, letter in enumerate(letters)}
    engine = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(eos_token, special=True, normalized=False)])
    return Tokenizer(engine, name=BYTES, eos_token=eos_token, is_bytes=True)


def byte_letters() -> list[str]:
    """Give the visible letter by which byte-level BPE (GPT-2) writes each of the 256 bytes."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, shifted = [], 256
    for byte in range(256):
        if byte in visible:
            letters.append(chr(byte))
        else:
            letters.append(chr(shifted))
            shifted += 1
    return letters


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text cannot be encoded: unpaired surrogate at character {error.start:,}"
        ) from error


def _find_files(path: Path) -> list[Path]:
    """Give [tokenizer.json] or [vocabulary, merges] for a folder or one of the files in it."""
    if path.is_dir():
        if (path / TOKENIZER_FILE).is_file():
            return [path / TOKENIZER_FILE]
        for names in GPT2_FILES:
            if any((path / name).is_file() for name in names):
                return _complete_pair(path, names)
        raise DataError(
            f"{path}: no tokenizer in this folder",
            hint="it needs tokenizer.json, vocab.json + merges.txt or encoder.json + vocab.bpe",
        )
    if not path.is_file():
        raise DataError(f"{path}: there is no such tokenizer file or folder")
    for names in GPT2_FILES:
        if path.name in names:
            return _complete_pair(path.parent, names)
    return [path]


def _complete_pair(folder_dir: Path, names: tuple[str, str]) -> list[Path]:
    """Give vocabulary and merges; DataError if one of them is missing."""
    missing = [name for name in names if not (folder_dir / name).is_file()]
    if missing:
        there = next(name for name in names if name not in missing)
        raise DataError(f"{folder_dir}: {there} is there, but its partner {missing[0]} is not")
    return [folder_dir / name for name in names]


def _open_engine(files: Sequence[Path]) -> tokenizers.Tokenizer:
    """Open the library's tokenizer; its many kinds of exception become one DataError."""
    try:
        if len(files) == 1:
            return tokenizers.Tokenizer.from_file(str(files[0]))
        engine = tokenizers.Tokenizer(models.BPE.from_file(str(files[0]), str(files[1])))
    except Exception as error:  # the library raises bare Exception
        names = " + ".join(str(file) for file in files)
        raise DataError(f"{names}: not a tokenizer that can be read ({error})") from error
    folder_dir = files[0].parent
    spaced = _read_object(folder_dir / CONFIG_FILE).get("add_prefix_space") is True
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    engine.decoder = decoders.ByteLevel()
    _add_tokens(engine, folder_dir)
    return engine


def _add_tokens(engine: tokenizers.Tokenizer, folder_dir: Path) -> None:
    """Add the tokens that Hugging Face lists beside vocabulary and merges, with their ids.

    DataError where they do not follow the vocabulary without a gap.
    """
    config = _read_object(folder_dir / CONFIG_FILE)
    try:
        added = {
            int(token_id): (entry["content"], entry.get("special") is True)
            for token_id, entry in config.get("added_tokens_decoder", {}).items()
        }
        for text, token_id in _read_object(folder_dir / "added_tokens.json").items():
            added.setdefault(token_id, (text, False))
        for token_id, (text, special) in sorted(added.items()):
            if engine.token_to_id(text) is None:
                engine.add_tokens([AddedToken(text, special=special, normalized=False)])
            if engine.token_to_id(text) != token_id:
                raise ValueError(f"{text!r} has another id than {token_id}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder_dir}: the added tokens do not fit the vocabulary ({error})"
        ) from error


def _find_eos(engine: tokenizers.Tokenizer, folder_dir: Path) -> str | None:
    """Ask Hugging Face's side files for the end-of-text token, then look for a usual one."""
    for file in (CONFIG_FILE, "special_tokens_map.json"):
        token = _read_object(folder_dir / file).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and engine.token_to_id(token) is not None:
            return token
    return next((token for token in EOS_TOKENS if engine.token_to_id(token) is not None), None)


def _read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; {} if the file is absent. DataError if it is something else."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{file}: not a JSON object")
    return value
