"""The messages of a .ckpt in the protobuf library, declared at run time: an independent view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "ckpt_for_tests"
REPEATED, OPTIONAL = 3, 1
INT64, STRING, MESSAGE, BYTES = 3, 9, 11, 12


def _declare() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="ckpt_for_tests.proto", package=PACKAGE, syntax="proto2"
    )
    for name, fields in {
        "Checkpoint": [("value", 1, MESSAGE, REPEATED, "Value")],
        "Value": [
            ("tag", 1, STRING, OPTIONAL, ""),
            ("tensor", 2, MESSAGE, OPTIONAL, "TensorProto"),
            ("maptensor", 3, MESSAGE, OPTIONAL, "MapTensorProto"),
        ],
        "TensorProto": [
            ("dims", 1, INT64, REPEATED, ""),
            ("tensor_type", 2, STRING, OPTIONAL, ""),
            ("tensor_content", 3, BYTES, OPTIONAL, ""),
        ],
        "MapTensorProto": [("tensor", 1, MESSAGE, REPEATED, "TensorProto")],
    }.items():
        message = file.message_type.add(name=name)
        for field, number, kind, label, type_name in fields:
            added = message.field.add(name=field, number=number, type=kind, label=label)
            if type_name:
                added.type_name = f".{PACKAGE}.{type_name}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in ("Checkpoint", "Value", "TensorProto")
    }


MESSAGES = _declare()


def parse(file: Path) -> list[Any]:
    """Give the Values of a file as the library reads it."""
    return list(MESSAGES["Checkpoint"].FromString(file.read_bytes()).value)


def serialize(*entries: tuple[str, list[int], str, bytes]) -> bytes:
    """Give one message of entries (tag, dims, type, content), as the library writes it."""
    message = MESSAGES["Checkpoint"]()
    for tag, dims, kind, content in entries:
        value = message.value.add(tag=tag)
        value.tensor.dims.extend(dims)
        value.tensor.tensor_type = kind
        value.tensor.tensor_content = content
    return message.SerializeToString()
