"""`munge HEADER FIELD OPERATION [retain MASK]` of pedit, and its values as text.

set, clear, add and decrement are understood; invert is not, for a Munge has no such operation, and offsets into raw bytes are not, for what they
change depends on what is there. Source: tc-pedit(8). Not here: where the fields lie (header_fields).
"""

from __future__ import annotations

from datapath.pipeline import quantities
from datapath.pipeline.findings import Expected, rule_error
from datapath.pipeline.header_fields import HEADER_FIELDS, HEADERS, SAME, HeaderField
from datapath.pipeline.quantities import keyword, number
from datapath.pipeline.rules import Munge
from datapath.pipeline.shell_words import Cursor, fail

REFUSED_HEADERS = {
    "offset": "raw offsets are not supported: expected a header and a field of it",
    "icmp": "tc has no field of ICMP: expected " + ", ".join(HEADERS),
}
REFUSED_OPERATIONS = {
    "invert": "inverting is not supported: expected set VALUE",
    "preserve": "this changes nothing: expected set VALUE",
}
OPERATIONS = ("set", "add", "decrement", "clear", *REFUSED_OPERATIONS)


def munge(cursor: Cursor, extended: bool) -> Munge:
    """The words behind `munge`. extended: `pedit ex`, without which only IPv4's own fields are known."""
    header = cursor.next(", ".join(HEADERS))
    if header.text in REFUSED_HEADERS:
        raise fail(header, REFUSED_HEADERS[header.text])
    if header.text not in HEADERS:
        raise fail(header, f"expected {', '.join(HEADERS)}")
    word = cursor.value(header, "a field")
    name = _field(header.text, word.text)
    if (header.text, name) not in HEADER_FIELDS:
        known = ", ".join(field for of, field in HEADER_FIELDS if of == header.text)
        raise rule_error(header.place, f"{header.text} {word.text}", f"expected {known}")
    if not extended and header.text != "ip":
        raise rule_error(header.place, f"{header.text} {word.text}", "expected `pedit ex` before it")
    field = HEADER_FIELDS[header.text, name]
    operation, said = cursor.value(word, "set VALUE"), f"{header.text} {word.text}"
    said += f" {operation.text}"
    try:
        op, value = _operation(cursor, operation.text, field, extended)
        mask = field.mask
        if keyword(cursor.peek() or "", ["retain"]):
            retain = cursor.next("retain")
            bits = cursor.value(retain, "a mask").text
            said += f" ... retain {bits}"
            mask = retained(field, number(bits, 0, 0xFFFFFFFF, "a mask"))
    except Expected as error:
        raise rule_error(header.place, said, str(error)) from None
    return Munge(header.text, name, op, value & mask, mask)


def _field(header: str, word: str) -> str:
    """A field's name. tc has other words for one, and lets only these be cut short."""
    others = {name: field for (of, name), field in SAME.items() if of == header}
    found = keyword(word, [*others, *(name for of, name in HEADER_FIELDS if of == header)])
    return others.get(found or word, word)


def retained(field: HeaderField, mask: int) -> int:
    """The bits that change: `retain` takes the place of the field's own mask. Raises Expected for a field that changes as a whole."""
    if field.whole:
        raise Expected("expected no retain with a field of more than 32 bits")
    return mask & ((1 << field.bits) - 1)


def _operation(cursor: Cursor, word: str, field: HeaderField, extended: bool) -> tuple[str, int]:
    """The operation, set or add, and its value."""
    word = keyword(word, OPERATIONS) or ""
    if word in REFUSED_OPERATIONS:
        raise Expected(REFUSED_OPERATIONS[word])
    if word == "clear":
        return "set", 0
    if word in ("add", "decrement"):
        if not extended:
            raise Expected("expected `pedit ex` for it")
        if not field.addable:
            raise Expected("what Linux adds to more than a byte depends on the machine: expected set VALUE")
        return "add", (1 << field.bits) - 1 if word == "decrement" else field_value(field, cursor.next("what to add").text)
    if word != "set":
        raise Expected("expected set VALUE, add VALUE, clear or decrement")
    return "set", field_value(field, cursor.next("a value").text)


def field_value(field: HeaderField, text: str) -> int:
    """A value of the field from its text. Raises Expected."""
    if field.kind == "mac":
        return quantities.mac(text)
    if field.kind in ("ipv4", "ipv6"):
        return int(quantities.address(text, int(field.kind[-1])))
    return number(text, 0, (1 << field.bits) - 1, "a value")


def field_text(field: HeaderField, value: int) -> str:
    """Back, as field_value reads it."""
    if field.kind == "mac":
        return quantities.mac_text(value)
    if field.kind == "ipv4":
        return str(quantities.IPv4Address(value))
    return str(quantities.IPv6Address(value)) if field.kind == "ipv6" else f"{value:#x}"
