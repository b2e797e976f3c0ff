"""The shape of a rules file in YAML, as pydantic models: what a JSON Schema is made from, and what a file is held against.

    rules:
      - {device: eth0, protocol: ip, prio: 2, match: {ct_state: -trk, ip_proto: tcp}, actions: [{ct: {zone: 5}}, goto chain 1]}

Values are written as in tc, but numbers are YAML's (010 is ten, 0x10 sixteen), and `then` says what follows an action: pipe where it is left out, for
all kinds alike. Imported only when YAML is read, written or described: needs the extra `rules`. Not here: places in the file, and what the values
mean together (yaml_rules, validate).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    WrapValidator,
    create_model,
    model_validator,
)

from datapath.pipeline import quantities
from datapath.pipeline.findings import Expected, Findings
from datapath.pipeline.flower_keys import KEYS, device
from datapath.pipeline.quantities import YAML, masked
from datapath.pipeline.rules import CONTROLS, MOST_VLAN, Control, Munge, RuleError
from datapath.pipeline.shell_words import Cursor, commands
from datapath.pipeline.tc_actions import CONTROL_WORDS, CSUM_ORDER, MAX_CHAIN, PTYPES, control, near_action, vlan_protocol
from datapath.pipeline.tc_actions import helper as read_helper
from datapath.pipeline.tc_pedit import munge


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _text(check: Callable[[str], object], about: str, integer: bool = True) -> Any:
    """A value that is written as text, or as a number, and becomes what `check` makes of it, or says what was expected."""
    kind = ["string", "integer"] if integer else "string"
    # Here a number stands for the text that it is: an unquoted 80 is as good as "80".
    return Annotated[Any, BeforeValidator(_as_text), AfterValidator(_only_text(check)), WithJsonSchema({"type": kind, "description": about})]


def _only_text(check: Callable[[str], object]) -> Callable[[object], object]:
    def checked(value: object) -> object:
        if not isinstance(value, str):
            raise Expected("expected a text or a number")
        return check(value)

    return checked


def _words(text: str, read: Callable[[Cursor], Any]) -> Any:
    """What a reader of tc words makes of a text that has nothing else in it."""
    found = Findings()
    cursors = list(commands(text, "", found))
    if found.errors or len(cursors) != 1:
        raise Expected("expected words as tc has them")
    try:
        value = read(cursors[0])
    except RuleError as error:
        raise Expected(error.expected) from None
    if cursors[0].peek() is not None:
        raise Expected(f"expected nothing behind '{' '.join(cursors[0].texts[: cursors[0].at])}'")
    return value


@lru_cache(1 << 10)
def _control(text: str) -> Control:
    """As in tc, but in full: a schema has no words cut short."""
    if text.split(" ")[0] not in CONTROL_WORDS:
        raise Expected(f"expected an action, {', '.join(CONTROLS[:-1])} or goto chain N{near_action(text)}")
    return _words(text, control)


def _munge(text: str) -> Munge:
    return _words(text, lambda cursor: munge(cursor, extended=True))


def _priority(text: object) -> int:
    """A number as it is, or a class in text."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str):
        raise Expected("expected a number, or MAJOR:MINOR in hexadecimal")
    return quantities.class_id(text)


_CONTROL_SCHEMA = {"type": "string", "pattern": f"^({'|'.join(CONTROLS[:-1])}|ok|shot|goto chain [0-9]+)$"}
_PRIORITY_SCHEMA = {"type": ["string", "integer"], "description": "a class, as in 1:a, or a number"}
ControlText = Annotated[Any, AfterValidator(_only_text(_control)), WithJsonSchema(_CONTROL_SCHEMA)]
Priority = Annotated[
    Any, AfterValidator(_priority), WithJsonSchema({"type": ["string", "integer"], "description": "a class, as in 1:a, or a number"})
]
Protocol = _text(quantities.ethertype, "an ethertype: ip, ipv6, arp, 802.1Q, ..., or a number")
Device = _text(device, "a device's name", integer=False)
Block = Annotated[int, Field(ge=1, le=0xFFFFFFFF)]


def _default(text: str) -> Any:
    """What is meant where nothing is written, as it would be written."""
    return Field(default=text, validate_default=True)


class Model(BaseModel):
    """Keys that are not there are errors, and nothing is turned into another type by itself."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _one(values: Model, *names: str) -> str:
    """The one of some keys that is there. Raises Expected if there is none, or more."""
    given = values.model_fields_set.intersection(names)
    if len(given) != 1:
        raise Expected(f"expected one of {', '.join(names)}")
    (name,) = given
    return name


class Nat(Model):
    """The mapping there is, or a new one."""

    src: _text(quantities.addresses, "A[-B]", integer=False) = None  # type: ignore[valid-type]
    dst: _text(quantities.addresses, "A[-B]", integer=False) = None  # type: ignore[valid-type]
    port: _text(quantities.ports, "P[-Q]") = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _sides(self) -> Nat:
        if self.model_fields_set:
            _one(self, "src", "dst")
        return self


class Ct(Model):
    """Connection tracking."""

    zone: Annotated[int, Field(ge=0, le=0xFFFF)] = 0
    mark: _text(lambda text: masked(text, YAML, 32, "a mark"), "MARK[/MASK]") = None  # type: ignore[valid-type]
    label: _text(lambda text: masked(text, YAML, 128, "a label"), "LABEL[/MASK], as a number") = None  # type: ignore[valid-type]
    commit: bool = False
    force: bool = False
    clear: bool = False
    nat: Nat | None = None
    helper: _text(read_helper, "FAMILY-PROTOCOL-NAME, as in ipv4-tcp-ftp", integer=False) = None  # type: ignore[valid-type]
    then: ControlText = _default("pipe")


class Mirred(Model):
    """To another device; nothing follows a redirect."""

    redirect: Device = None  # type: ignore[valid-type]
    mirror: Device = None  # type: ignore[valid-type]
    direction: Literal["egress", "ingress"] = "egress"
    then: ControlText = _default("pipe")

    @model_validator(mode="after")
    def _kind(self) -> Mirred:
        if _one(self, "redirect", "mirror") == "redirect" and "then" in self.model_fields_set:
            raise Expected("expected no `then` with redirect: nothing follows it")
        return self


class Pedit(Model):
    """Changes of header fields, each as tc has it behind `pedit ex munge`."""

    munge: Annotated[list[_text(_munge, "ip ttl set 64", integer=False)], Field(min_length=1)]  # type: ignore[valid-type]
    then: ControlText = _default("pipe")


class Csum(Model):
    """Checksums made anew."""

    of: Annotated[list[Literal[CSUM_ORDER]], Field(min_length=1)]  # type: ignore[valid-type]
    then: ControlText = _default("pipe")


class Skbedit(Model):
    """What goes with a packet and is not in it."""

    mark: _text(lambda text: masked(text, YAML, 32, "a mark"), "MARK[/MASK]") = None  # type: ignore[valid-type]
    priority: Priority = None
    queue: Annotated[int, Field(ge=0, le=0xFFFF)] | None = None
    ptype: Literal[PTYPES] | None = None  # type: ignore[valid-type]
    then: ControlText = _default("pipe")


class Vlan(Model):
    """Tags pushed, popped, changed."""

    kind: Literal["push", "pop", "modify"]
    id: Annotated[int, Field(ge=0, le=MOST_VLAN)] | None = None
    protocol: _text(vlan_protocol, "802.1Q or 802.1ad") = None  # type: ignore[valid-type]
    priority: Annotated[int, Field(ge=0, le=7)] | None = None
    then: ControlText = _default("pipe")


class Police(Model):
    """A token bucket. `then` is for what conforms."""

    rate: _text(quantities.rate, "bits a second, or with a unit, as in 10mbit") = None  # type: ignore[valid-type]
    burst: _text(quantities.size, "bytes, or with a unit, as in 100k") = None  # type: ignore[valid-type]
    mtu: _text(quantities.size, "bytes, or with a unit") = None  # type: ignore[valid-type]
    packet_rate: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] | None = None
    packet_burst: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] | None = None
    exceed: ControlText = _default("reclassify")
    then: ControlText = _default("pass")


ACTION_MODELS: dict[str, type[Model]] = {
    "ct": Ct, "mirred": Mirred, "pedit": Pedit, "csum": Csum, "skbedit": Skbedit, "vlan": Vlan, "police": Police,
}  # fmt: skip


class Action(Model):
    """One action, by its kind."""

    ct: Ct | None = None
    mirred: Mirred | None = None
    pedit: Pedit | None = None
    csum: Csum | None = None
    skbedit: Skbedit | None = None
    vlan: Vlan | None = None
    police: Police | None = None

    @model_validator(mode="after")
    def _kinds(self) -> Action:
        if getattr(self, _one(self, *ACTION_MODELS)) is None:
            raise Expected("expected a mapping with what the action is to do")
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))


def _form(value: object) -> str:
    return "word" if isinstance(value, str | Control) else "mapping"


class _Known:
    """What was right before is right again: rules do the same few things thousands of times. Equal values become one object."""

    def __init__(self) -> None:
        self.by_text: dict[str, Any] = {}

    def __call__(self, value: object, check: Callable[[object], Any]) -> Any:
        text = repr(value)  # tells 5 from "5", and true from 1
        if text not in self.by_text:
            if len(self.by_text) >= MAX_KNOWN:
                self.by_text.clear()
            self.by_text[text] = check(value)
        return self.by_text[text]


MAX_KNOWN = 1 << 12
AnyAction = Annotated[
    Annotated[ControlText, Tag("word")] | Annotated[Action, Tag("mapping")], Discriminator(_form), WrapValidator(_Known())
]  # fmt: skip

# Values are read where the ethertype is known (yaml_rules).
Matches = create_model(
    "Matches",
    __base__=Model,
    **{name: (_text(str, f"{key.form}: {key.about.partition(';')[0]}"), None) for name, key in KEYS.items()},
)  # type: ignore[call-overload]


class Hooked(Model):
    """Where something hangs: a device's ingress or egress, or a shared block."""

    device: Device = None  # type: ignore[valid-type]
    direction: Literal["ingress", "egress"] = "ingress"
    block: Block | None = None
    protocol: Protocol = _default("all")  # type: ignore[valid-type]
    chain: Annotated[int, Field(ge=0, le=MAX_CHAIN)] = 0
    match: Matches = Field(default_factory=Matches)  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _hook(self) -> Hooked:
        if _one(self, "device", "block") == "block" and "direction" in self.model_fields_set:
            raise Expected("expected no direction with block")
        return self


class Rule(Hooked):
    """A rule: what it is for, and what it does."""

    prio: Annotated[int, Field(ge=1, le=0xFFFF)] | None = None
    handle: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] | None = None
    skip_sw: bool = False
    skip_hw: bool = False
    actions: list[AnyAction] = []


class Template(Hooked):
    """What the rules of a chain may look at."""


class Qdisc(Model):
    """The qdisc of a device's hooks."""

    device: Device  # type: ignore[valid-type]
    kind: Literal["ingress", "clsact"] = "clsact"
    ingress_block: Block | None = None
    egress_block: Block | None = None


class RulesFile(Model):
    """A whole file: qdiscs, templates of chains, rules."""

    qdiscs: list[Qdisc] = []
    templates: list[Template] = []
    rules: list[Rule] = []


def keys_at(loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the mapping that a path of keys leads to. Numbers of items and names of forms are no keys."""
    model: type[Model] = RulesFile
    for step in loc:
        if isinstance(step, str) and step in model.model_fields:
            model = _model_in(model.model_fields[step].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[Model] | None:
    """The model that a field holds, or has a list of."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((found for each in get_args(annotation) if (found := _model_in(each))), None)


def schema() -> dict[str, Any]:
    """The JSON Schema of a rules file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_tidy(RulesFile.model_json_schema()), "title": "Rules of ctmirror"}


def _tidy(node: Any, names: bool = False) -> Any:
    """Without what pydantic adds and says nothing: titles made of names, null for what may be left out. names: whether the keys are names."""
    if isinstance(node, list):
        return [_tidy(each) for each in node]
    if not isinstance(node, dict):
        return node
    one = [each for each in node.get("anyOf", ()) if each != {"type": "null"}]
    if not names and len(one) == 1:
        node = {**{key: value for key, value in node.items() if key != "anyOf"}, **one[0]}
    dropped = () if names else tuple(key for key in ("title", "default") if key == "title" or node.get(key, 0) is None)
    return {key: _tidy(value, not names and key in ("properties", "$defs")) for key, value in node.items() if key not in dropped}
