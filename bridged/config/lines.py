"""YAML text to plain values, with the line of each, so that a person finds a problem."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

MOST_PROBLEMS: Final = 100  # a person reads no more, and the sentences of all may take a minute
_MOST_NODES: Final = 80_000  # 2,000 clients with 5 folders each have 28,000; an alias bomb unfolds to billions
_MOST_TEXT: Final = 2_000_000  # characters, counted for each alias: a name of 1 MB with 1,000 aliases is 1 GB
_DEEPEST: Final = 50
_LONGEST_NUMBER: Final = 100  # characters: 59:59:59:... is a number to YAML, and 100,000 parts take a minute
_SHOWN: Final = 80  # characters of a value in a message: a value may be as long as the file

Where = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a file, with its line, its place in the YAML, and a remedy."""

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
    """The values of a YAML file, the line of each, and the problems found so far.

    `texts` holds numbers, dates and booleans as they are written. To YAML `0012` is 10; to a person it is a folder.
    """

    file: str
    value: Any = None
    lines: dict[Where, int] = field(default_factory=dict)
    texts: dict[Where, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    more: int = 0
    nodes: int = 0
    text: int = 0

    def line(self, where: Where) -> int:
        """The line of a value, or of the nearest one around it."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)

    def add(self, where: Where, message: str, remedy: str, line: int | None = None) -> None:
        """Note a problem at a place. After the hundredth only their number grows."""
        if len(self.problems) < MOST_PROBLEMS:
            line = self.line(where) if line is None else line
            self.problems.append(Problem(self.file, line, dotted(where), message, remedy))
        else:
            self.more += 1

    def found(self) -> list[Problem]:
        """The problems in the order of their lines. After a hundred, one more tells the number of the rest."""
        found = sorted(self.problems, key=lambda p: p.line)
        if self.more:
            message = f"More problems that are not shown: {self.more}."
            found.append(Problem(self.file, found[-1].line, "", message, "Correct these first, then check again."))
        return found

    def count(self, node: yaml.Node) -> None:
        """Count a node and its text, once for each alias. Raises _TooMuch."""
        self.nodes += 1
        self.text += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        if self.nodes > _MOST_NODES or self.text > _MOST_TEXT:
            raise _TooMuch


class _TooMuch(Exception):
    """More nodes, or more text, than any real configuration has."""


class _Loader(yaml.SafeLoader):
    """A loader that gives up a file of tiny nodes early, because 1 MB of them takes PyYAML 20 s."""

    _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise _TooMuch
        return super().compose_node(parent, index)


def shown(value: Any) -> str:
    """A value of the file for a message: quoted, on one line, cut to 80 characters."""
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
    """The values and lines of a YAML text. `file` is its name in the problems.

    No tag is constructed. A duplicate key is a problem, and so is each mistake of YAML; nothing is raised.
    """
    result = Lines(file)
    try:
        loader = _Loader(text)
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
        message = "The file holds far too many values, or unfolds to them."
        remedy = "Remove the nested aliases (`*name`), and what is no configuration of bridged."
        result.problems.append(Problem(file, 1, "", message, remedy))
    finally:
        loader.dispose()
    return result


def _not_yaml(file: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    # The quotation is cut out, because it may be a password that begins with * or !. The line is named anyway.
    why = re.sub(r""" (['"])(?!<)..+\1""", "", error.problem or error.context or "unreadable")
    remedy = "Check the indentation and the quotes of this line."
    return Problem(file, mark.line + 1 if mark else 1, "", f"This is not YAML: {why}.", remedy)


def _value(loader: yaml.SafeLoader, node: yaml.Node, where: Where, result: Lines) -> Any:
    result.count(node)
    if len(where) > _DEEPEST:
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
    if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
        return str(node.value)
    try:
        return loader.construct_object(node)
    except (ValueError, OverflowError):  # 2026-02-30 looks like a date, and 0b_ like a number
        return str(node.value)


_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode, where: Where, result: Lines) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        result.count(key_node)  # also a key that stands here again, because 20,000 times 20,000 of them took a minute
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        inner = (*where, key)
        if key in values:
            line = key_node.start_mark.line + 1
            message = f"The key {shown(key)} stands here a second time (first on line {result.line(inner)})."
            result.add(inner, message, "Remove one of the two.", line)
            continue
        result.lines[inner] = key_node.start_mark.line + 1
        values[key] = _value(loader, value_node, inner, result)
    return values
