"""What all models of Kubernetes objects have in common: names, strictness, and errors that say where and what was expected.

Models are pydantic's, in strict mode: YAML's `yes` or `80` is no string, and no number is made of "80". Two kinds: of a Strict model an unknown
field is an error, since it could change what a policy means (a misspelt `podselector` selects everything); of an Open one it is not looked at, since
of a pod hardly anything matters here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from datapath.pipeline.policy.documents import Document
from datapath.pipeline.policy.errors import PolicyError

Port = Annotated[int, Field(ge=1, le=65535)]
Protocol = Literal["TCP", "UDP", "SCTP"]
_PORT_NAME = re.compile("(?=.*[a-z])(?=.{1,15}$)[a-z0-9](-?[a-z0-9])*")  # IANA_SVC_NAME of the Kubernetes API (RFC 6335 section 5.1)
UNKNOWN = "unknown_field"
PROTOCOLS: dict[str, int] = {"TCP": 6, "UDP": 17, "SCTP": 132}


def wrong(text: str, **values: Any) -> PydanticCustomError:
    """An error that a validator raises; its text says what was expected."""
    return PydanticCustomError("policy", text, values or None)


def _port_name(value: str) -> str:
    if not _PORT_NAME.fullmatch(value):
        raise wrong("'{value}': expected a port's name: at most 15 lower case letters, digits and single hyphens within, one a letter", value=value)
    return value


PortName = Annotated[str, AfterValidator(_port_name)]


class Open(BaseModel):
    """A part of an object of which some fields matter."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True)


class Strict(BaseModel):
    """A part of an object of which every field matters."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, frozen=True, extra="ignore", alias_generator=to_camel, validate_by_name=True)

    @model_validator(mode="wrap")
    @classmethod
    def _known(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Unknown fields beside all else that is wrong, but for what is missing then: that is mostly there under a wrong name."""
        names = {each.alias or name for name, each in cls.model_fields.items()}
        unknown = [key for key in data if key not in names] if isinstance(data, Mapping) else []
        if not unknown:
            return handler(data)
        found: list[InitErrorDetails] = [{"type": _unknown(str(key), names), "loc": (str(key),), "input": data} for key in unknown]
        try:
            handler(data)
        except ValidationError as error:
            deeper = [each for each in error.errors(include_url=False) if len(each["loc"]) > (each["type"] == "missing")]
            found += [_again(each) for each in deeper]
        raise ValidationError.from_exception_data(cls.__name__, found)


def _unknown(name: str, names: Collection[str]) -> PydanticCustomError:
    near = get_close_matches(name, sorted(names), n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected {one_of(sorted(names))}"
    return PydanticCustomError(UNKNOWN, "unknown field '{name}'; {hint}", {"name": name, "hint": hint})


def _again(error: ErrorDetails) -> InitErrorDetails:
    """An error that was raised, to be raised once more."""
    kind, given = error["type"], error.get("ctx", {})
    ours = kind in ("policy", UNKNOWN)
    known: PydanticCustomError | str = PydanticCustomError(kind, "{text}", {"text": error["msg"]}) if ours else kind
    return {"type": known, "loc": error["loc"], "input": error["input"], "ctx": given}


class Selector(Strict):
    """A part of which exactly one field is given. The docstrings of those who inherit say what each of them means."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [each.alias for name, each in type(self).model_fields.items() if getattr(self, name) is not None]
        if len(given) != 1:
            names = one_of([each.alias or name for name, each in type(self).model_fields.items()])
            raise wrong("{given}; expected exactly one of {names}", given=" and ".join(map(str, given)) or "nothing is given", names=names)
        return self


class Requirement(Strict):
    """One item of matchExpressions."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str] = []

    @model_validator(mode="after")
    def _valued(self) -> Self:
        if self.operator in ("In", "NotIn") and not self.values:
            raise wrong("operator {operator} without values; expected at least one", operator=self.operator)
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            raise wrong("operator {operator} with values; expected none", operator=self.operator)
        return self

    def holds(self, labels: Mapping[str, str]) -> bool:
        """NotIn holds where the label is not there at all (labels and selectors of the Kubernetes documentation)."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels


class LabelSelector(Strict):
    """All of its requirements together; an empty one selects everything."""

    match_labels: dict[str, str] = {}
    match_expressions: list[Requirement] = []

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            each.holds(labels) for each in self.match_expressions
        )


class Metadata(Open):
    name: Annotated[str, Field(min_length=1)]
    namespace: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


def one_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], document: Document) -> Model:
    """The document's object as this model. Raises PolicyError about everything that is wrong with it, in the order of its lines."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        found = sorted(error.errors(include_url=False), key=lambda each: document.line_number(each["loc"]))
        raise PolicyError(*dict.fromkeys(_line(document, dict(each)) for each in found)) from None


def _line(document: Document, error: dict[str, Any]) -> str:
    """Of an unknown field the path leads to what it is in, and its own name is in the text."""
    loc = error["loc"]
    return document.line(loc, _sentence(error), loc[:-1] if error["type"] == UNKNOWN else loc)


# What pydantic calls what is wrong, in our words; `ctx` fills the braces.
_SENTENCES = {
    "missing": "missing; expected it to be there",
    "string_type": "expected a string (in quotes, where YAML takes it for something else)",
    "int_type": "expected a whole number",
    "list_type": "expected a sequence",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping",
    "bool_type": "expected true or false",
    "literal_error": "expected {expected}",
    "greater_than_equal": "expected at least {ge}",
    "less_than_equal": "expected at most {le}",
    "string_too_short": "expected a name",
    "string_too_long": "expected at most {max_length} characters",
    "too_short": "expected at least {min_length}",
    "too_long": "expected at most {max_length}",
}


def _sentence(error: dict[str, Any]) -> str:
    given = error.get("input")
    shown = f"'{given}': " if isinstance(given, (str, int, float)) else ""
    text = _SENTENCES.get(error["type"])
    return error["msg"] if text is None else shown + text.format_map(error.get("ctx", {}))
