"""What every section of options has in common, and the ranges that numbers lie in."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema

AtLeastOne = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]

_ONLY_A_PERSON = Field(json_schema_extra={"only_a_person": True})
CodePlace = Annotated[str | None, _ONLY_A_PERSON]
"""Where code is that will run: what a file says of it counts only once a person says it too, see `config.trust`."""
Trust = Annotated[bool, _ONLY_A_PERSON]
"""A guard that is taken away; likewise."""


@dataclass(frozen=True)
class Section:
    """Base of the dataclasses of options.

    They are plain frozen dataclasses: made by hand or by `dataclasses.replace`, nothing is checked. `parsing.build`
    makes one from plain values and checks types, ranges and names. The text under a field is its help.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: Any = handler(source)
        # A section comes as a mapping, which strictness would refuse; the values in it keep their types all the same.
        schema["strict"] = False
        return cast(CoreSchema, schema)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        described = handler(schema)
        # Not every pydantic says what a standard dataclass is for.
        resolved = handler.resolve_ref_schema(described)
        resolved["description"] = inspect.getdoc(cls) or ""
        # Nor does any know the text under a field that a base class has.
        for base in cls.__mro__[1:]:
            if "__dataclass_fields__" in vars(base):
                for name, own in TypeAdapter(base).json_schema().get("properties", {}).items():
                    resolved["properties"][name].setdefault("description", own.get("description", ""))
        return described
