"""The few types that all sections of the schema are made of.

They are strict where a lenient reader would hide a mistake: text is never read as a number, `true`
is not `1`. A float that is whole is an integer (people write `max_steps: 1e6`), and an integer is a
number.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Strict

# Room for every honest count; beyond it arrays, seeds and divisors overflow one after the other.
LARGEST_INTEGER = 2**31 - 1


def _take_whole_float(value: object) -> object:
    """Turn 1e6 into 1000000; leave everything else to the strict integer check.

    Raises ValueError for a number no key has use for.
    """
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"must be an integer of at most {LARGEST_INTEGER}")
    return value


Integer = Annotated[int, Strict(), BeforeValidator(_take_whole_float)]
Number = Annotated[float, Strict(), AllowInfNan(False)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]


class Block(BaseModel):
    """Base of every mapping of the file: frozen, and without room for keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
