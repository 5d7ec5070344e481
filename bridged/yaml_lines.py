"""YAML text to plain values, and the line of each: what a person needs to find a problem."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

_MOST_NODES: Final = 200_000  # an alias bomb unfolds to billions
_DEEPEST: Final = 50
_SHOWN: Final = 80  # characters of what stands in the file: a value may be the whole file, and be meant many times

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
    """The values of a YAML file, the line of each, and what is wrong with it as YAML.

    `texts` holds how numbers, dates and booleans are written: `0012` is 10 to YAML, and a folder's name to a person.
    """

    file: str
    value: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    texts: dict[Where, str] = field(default_factory=dict)
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


def shown(value: Any) -> str:
    """A value of the file for a message: quoted, on one line, not endless."""
    if isinstance(value, dict | list):
        return "This mapping" if isinstance(value, dict) else "This list"
    text = repr(value[: _SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def dotted(where: Where) -> str:
    """`clients[2].ged`, as people write a place."""
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{_key(part)}" if text else _key(part)
    return text


def _key(part: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in part[:_SHOWN])


def read(text: str, file: str) -> Lines:
    """Parse safely: no tags are constructed, duplicate keys are problems."""
    result = Lines(file)
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"This is not YAML: the character U+{ord(text[error.position]):04X} must not stand in it."
        result.problems.append(Problem(file, line, "", message, "Remove it, or save the file as UTF-8 text."))
        return result
    try:
        node = loader.get_single_node()
        result.value = {} if node is None else _value(loader, node, (), result)
    except yaml.MarkedYAMLError as error:
        result.problems.append(_not_yaml(file, error))
    except (_TooMuch, RecursionError):
        message = "The file unfolds to far too many values."
        result.problems.append(Problem(file, 1, "", message, "Remove the nested aliases (`*name`)."))
    finally:
        loader.dispose()
    return result


def _not_yaml(file: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    # What is quoted of the file may be a password that begins with * or !; the line is named anyway.
    why = re.sub(r""" (['"])(?!<)..+\1""", "", error.problem or error.context or "unreadable")
    remedy = "Check the indentation and the quotes of this line."
    return Problem(file, mark.line + 1 if mark else 1, "", f"This is not YAML: {why}.", remedy)


def _value(loader: yaml.SafeLoader, node: yaml.Node, where: Where, result: Lines) -> Any:
    result.nodes += 1
    if result.nodes > _MOST_NODES or len(where) > _DEEPEST:
        raise _TooMuch
    result.lines.setdefault(where, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, where, result)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*where, i), result) for i, item in enumerate(node.value)]
    value = _scalar(loader, node)
    if value is not None and not isinstance(value, str):
        result.texts[where] = str(node.value)
    return value


def _scalar(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    try:
        value = loader.construct_object(node)
        str(value)  # Python refuses to write a number of thousands of digits
    except (ValueError, OverflowError):  # 2026-02-30 looks like a date and 0b_ like a number; neither is one
        return str(node.value)
    return value


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, where: Where, result: Lines) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        inner = (*where, key)
        if key in values:
            line = key_node.start_mark.line + 1
            message = f"The key {shown(key)} stands here a second time (first on line {result.line(inner)})."
            result.problems.append(Problem(result.file, line, dotted(inner), message, "Remove one of the two."))
            continue
        result.lines[inner] = key_node.start_mark.line + 1
        values[key] = _value(loader, value_node, inner, result)
    return values
