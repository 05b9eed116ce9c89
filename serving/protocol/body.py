"""The base of every request object: strict types, null means absent, and every field has a known fate.

A field is executed (it is a field of the model), tolerated (it cannot change the answer's meaning), or refused by
name. Nothing is dropped in silence: a field in none of these is an error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError

from .description import complete
from .explain import preview


@dataclass(frozen=True, slots=True)
class Tolerated:
    """A field that is accepted without being executed."""

    reason: str
    """Why that is right."""
    only: tuple[object, ...] | None = None
    """Values that ask for what happens anyway; None: any value."""

    def schema(self) -> dict[str, Any] | None:
        """Its JSON Schema."""
        values = {} if self.only is None else {"enum": [*self.only, None]}
        return values | {"description": f"Accepted without effect. {self.reason}"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that would change the meaning of the answer and is not executed."""

    reason: str
    remedy: str = "Leave it out."

    def schema(self) -> dict[str, Any] | None:
        """None: to JSON Schema it is as unknown as any other field."""
        return None


class RequestBody(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    other_fields: ClassVar[Mapping[str, Tolerated | Refused]] = {}
    """The fate of the fields that the model does not have."""
    executed_fields: ClassVar[frozenset[str]] = frozenset()
    """Those that it has, as clients write them."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Note the names once: pydantic calls this for each model whose fields are complete."""
        cls.executed_fields = frozenset(field.alias or name for name, field in cls.model_fields.items())

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """What `_settle_fields` does to a field, said in the schema."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        complete(schema, cls)
        return schema

    @model_validator(mode="before")
    @classmethod
    def _settle_fields(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        executed = {}
        for name, value in raw.items():
            if value is None:
                continue
            if name in cls.executed_fields:
                executed[name] = value
            else:
                _settle(name, value, cls.other_fields.get(name))
        return executed


def invalid(code: str, message: str, param: str | None = None) -> PydanticCustomError:
    """An error of our own; `param` is the field at fault below the model that raises it."""
    # pydantic fills braces of the template from the context, so the message may not be the template itself
    return PydanticCustomError(code, "{message}", {"message": message} | ({"param": param} if param else {}))


def _settle(name: str, value: object, fate: Tolerated | Refused | None) -> None:
    match fate:
        case Tolerated(only=None):
            return
        case Tolerated(reason=reason, only=only):
            if any(value == allowed and type(value) is type(allowed) for allowed in only or ()):
                return
            allowed = " or ".join(map(preview, only or ()))
            raise invalid(
                "unsupported_parameter",
                f"{preview(value)} is not supported: {reason} Send {allowed}, or leave it out.",
                name,
            )
        case Refused(reason=reason, remedy=remedy):
            raise invalid("unsupported_parameter", f"this server does not support it: {reason} {remedy}", name)
        case _:
            raise invalid("unknown_parameter", "no such parameter here. Leave it out.", name)
