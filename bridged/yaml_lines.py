"""YAML text to plain values, and the line of each: what a person needs to find a problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import yaml

_MOST_NODES: Final = 200_000  # an alias bomb unfolds to billions
_DEEPEST: Final = 50

Where = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file, with its line, its place in the YAML, and what to do about it."""

    file: str
    line: int
    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{self.file}:{self.line}: {place}{self.message} {self.remedy}".rstrip()


@dataclass(slots=True)
class Lines:
    """The values of a YAML file, the line of each, and what is wrong with it as YAML."""

    file: str
    value: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def line(self, where: Where) -> int:
        """The line of a value, or of the nearest one around it."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)

    def add(self, where: Where, message: str, remedy: str) -> None:
        """Note a problem at a place."""
        self.problems.append(Problem(self.file, self.line(where), dotted(where), message, remedy))


class _TooMuch(Exception):
    """More nodes than any real configuration has."""


def dotted(where: Where) -> str:
    """`clients[2].ged`, as people write a place."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read(text: str, file: str) -> Lines:
    """Parse safely: no tags are constructed, duplicate keys are problems."""
    result = Lines(file)
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        result.value = {} if node is None else _value(loader, node, (), result)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        why = error.problem or error.context or "unreadable"
        result.problems.append(
            Problem(
                file,
                line,
                "",
                f"This is not YAML: {why}.",
                "Check the indentation and the quotes of this line.",
            )
        )
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        result.problems.append(Problem(file, 1, "", f"This is not YAML: {first}.", "Save it as UTF-8 text."))
    except (_TooMuch, RecursionError):
        result.problems.append(
            Problem(
                file,
                1,
                "",
                "The file unfolds to far too many values.",
                "Remove the nested aliases (`*name`).",
            )
        )
    finally:
        loader.dispose()
    return result


def _value(loader: yaml.SafeLoader, node: yaml.Node, where: Where, result: Lines) -> Any:
    result.nodes += 1
    if result.nodes > _MOST_NODES or len(where) > _DEEPEST:
        raise _TooMuch
    result.lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, where, result)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*where, i), result) for i, item in enumerate(node.value)]
    return loader.construct_object(node)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, where: Where, result: Lines) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        inner = (*where, key)
        if key in values:
            line = key_node.start_mark.line + 1
            message = f"The key {key!r} stands here a second time (first on line {result.line(inner)})."
            result.problems.append(Problem(result.file, line, dotted(inner), message, "Remove one of the two."))
            continue
        result.lines[inner] = key_node.start_mark.line + 1
        values[key] = _value(loader, value_node, inner, result)
    return values
