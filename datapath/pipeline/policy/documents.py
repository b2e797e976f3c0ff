"""YAML files as documents that know where each of their fields was written.

`kubectl get -o yaml` prints one object, or one of kind List with the objects in `items`; people also write several documents into a file, with ---
between them. All three come out as one sequence of objects here. JSON is YAML, too.
Invariants: no key twice in a mapping (the YAML library would silently take the last one, and half of a policy would be lost); no document larger
than LIMIT values when its aliases are written out; a null value is a field that is not there, as Kubernetes has it.
Not here: what the objects mean (objects, network_policy, admin_policy).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from datapath.names import printable
from datapath.pipeline.policy.errors import PolicyError
from datapath.pipeline.yaml_text import TAB, is_tab

LIMIT = 2_000_000  # values of a document; a List of a thousand pods has about 300,000
STDIN = "-"


@dataclass(frozen=True)
class Document:
    """One object. file: its name as shown; number: of the document in it, from 1; path: where in that the object is; node: its YAML tree."""

    file: str
    number: int
    data: dict[str, Any]
    node: Any
    path: tuple[str | int, ...] = ()

    @property
    def title(self) -> str:
        """Its kind and name, as far as it has them: NetworkPolicy shop/db."""
        metadata = self.data.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        name = "/".join(str(metadata[key]) for key in ("namespace", "name") if metadata.get(key))
        return " ".join(part for part in (str(self.data.get("kind", "object")), name) if part)

    def fail(self, path: Sequence[str | int], text: str) -> NoReturn:
        """Raise PolicyError about the field at path, within this object."""
        raise PolicyError(self.line(path, text))

    def line(self, path: Sequence[str | int], text: str, shown: Sequence[str | int] | None = None) -> str:
        """What is to be said of the field at path, with its place. shown: the path that is named, if it is another."""
        at, field = self.line_number(path), path_text(path if shown is None else shown)
        return f"{self.file}:{at}: document {self.number}, {printable(self.title)}: {field + ': ' if field else ''}{printable(text)}"

    def line_number(self, path: Sequence[str | int]) -> int:
        return _line_of(self.node, [*self.path, *path])


def path_text(path: Sequence[str | int]) -> str:
    """spec.ingress[0].ports[1].port"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{printable(part)}" for part in path).lstrip(".")


def _line_of(node: Any, path: Sequence[str | int]) -> int:
    """The line, from 1, of what a path leads to, or of the last part of it that exists."""
    spot = node
    for part in path:
        found = _child(node, part)
        if found is None:
            break
        spot, node = found
    return int(spot.start_mark.line) + 1


def _child(node: Any, part: str | int) -> tuple[Any, Any] | None:
    """Where a part begins, of a mapping with its key, and its value."""
    if node.id == "mapping":
        return next(((key, value) for key, value in node.value if key.value == part), None)
    known = node.id == "sequence" and isinstance(part, int) and part < len(node.value)
    return (node.value[part], node.value[part]) if known else None


def read_documents(names: Sequence[str]) -> Iterator[Document]:
    """All objects of some files, in order. Raises PolicyError for what cannot be read, is no YAML, or no object."""
    for name in names:
        shown = "stdin" if name == STDIN else printable(name)
        try:
            text = _read(name)
        except OSError as error:
            raise PolicyError(f"{shown}: {error.strerror or error}") from error
        for number, (data, node) in enumerate(_parse(shown, text), 1):
            if data is not None:
                yield from _objects(Document(shown, number, data, node))


def _read(name: str) -> bytes:
    if name == STDIN:
        return sys.stdin.buffer.read()
    with open(name, "rb") as file:
        return file.read()


def read_values(name: str) -> list[Any]:
    """The documents of any YAML file as plain values. Raises PolicyError."""
    try:
        return [data for data, _ in _parse(printable(name), _read(name))]
    except OSError as error:
        raise PolicyError(f"{printable(name)}: {error.strerror or error}") from error


def _objects(document: Document) -> Iterator[Document]:
    """A List's items, or the object itself."""
    data = document.data
    if not isinstance(data, dict):
        raise PolicyError(
            f"{document.file}:{_line_of(document.node, ())}: document {document.number}: expected an object with apiVersion, kind and metadata"
        )
    for key in ("apiVersion", "kind"):
        if not isinstance(data.get(key), str):
            document.fail([key], "expected a string, as in every Kubernetes object")
    if not (data["kind"].endswith("List") and "items" in data):
        yield document
        return
    items = data["items"]
    if not isinstance(items, list):
        document.fail(["items"], "expected a sequence of objects")
    for i, item in enumerate(items):
        if not isinstance(item, dict):
            document.fail(["items", i], "expected an object")
        if data["kind"] != "List":  # PodList, NetworkPolicyList: their items need not repeat it
            item = {"apiVersion": data["apiVersion"], "kind": data["kind"].removesuffix("List"), **item}
        yield from _objects(Document(document.file, document.number, item, document.node, (*document.path, "items", i)))


@cache
def _loader() -> Any:
    """The YAML library's safe loader, with its C parser where there is one; imported when a file is read, since few commands need it."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.id == "scalar" and key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is there twice; expected it once", key.start_mark)
                seen.add(key.value if key.id == "scalar" else None)
            return super().construct_mapping(node, deep)

    return Loader


def _parse(name: str, text: bytes) -> Iterator[tuple[Any, Any]]:
    """Each document as values, without nulls, and as YAML nodes. Raises PolicyError."""
    made = _loader()
    import yaml

    loader = None
    try:
        loader = made(text)
        while loader.check_node():
            node = loader.get_node()
            _measure(name, node)
            yield _without_nulls(loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        tab = mark is not None and is_tab(text.decode(errors="replace"), mark)
        raise PolicyError(f"{name}{place}: no YAML: {TAB if tab else error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise PolicyError(f"{name}: no YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, ValueError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise PolicyError(f"{name}: no YAML to work with: {why}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _measure(name: str, root: Any) -> None:
    """Refuse a document that is small only because of its aliases: written out, it would fill the memory."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        known = sizes.get(id(node))
        if known is not None:
            if known < 0:
                raise PolicyError(f"{name}:{node.start_mark.line + 1}: an alias inside of what it stands for; expected a finite document")
            return known
        sizes[id(node)] = -1
        if node.id == "mapping":
            total = 1 + sum(size(key) + size(value) for key, value in node.value)
        else:
            total = 1 + (sum(map(size, node.value)) if node.id == "sequence" else 0)
        sizes[id(node)] = total
        return total

    if size(root) > LIMIT:
        raise PolicyError(f"{name}:{root.start_mark.line + 1}: a document of more than {LIMIT:,} values; expected less")


def _without_nulls(value: Any) -> Any:
    """null, as the value of a field, is what Kubernetes takes for no field; as an item of a sequence it stays, to be refused."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
