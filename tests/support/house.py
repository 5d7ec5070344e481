"""Figures of the house, read off its source. `test_architecture.py` holds them against the ceilings."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bridged"
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Figure(NamedTuple):
    """One figure, and the place in the source that it was read off."""

    value: float
    place: str


class House:
    """The package's source, parsed once. Each method returns one figure of the table of ceilings."""

    def __init__(self, package: Path = PACKAGE) -> None:
        self._package = package
        self.texts = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
        self.trees = {path: ast.parse(text, str(path)) for path, text in self.texts.items()}

    def foreign_writes(self) -> Figure:
        """Assignments to an attribute of an object other than `self`, `del` included."""
        places = [f"{self._name(path)}:{line}" for path, tree in self.trees.items() for line in _foreign_writes(tree)]
        return Figure(len(places), " ".join(places))

    def fields(self) -> Figure:
        """Of the class with most: names assigned on `self`, or declared in the body of a dataclass or a model."""
        return self._largest_class(lambda node: len(_fields(node)))

    def methods(self) -> Figure:
        """Of the class with most; properties count."""
        return self._largest_class(lambda node: sum(isinstance(part, Function) for part in node.body))

    def class_lines(self) -> Figure:
        """Of the longest class, from its head to its last line."""
        return self._largest_class(lambda node: (node.end_lineno or 0) - node.lineno + 1)

    def fan_out(self) -> Figure:
        """Of the module that imports most other modules or packages of bridged. Doors are not counted as modules."""
        counts = [
            Figure(len(set(self._imported(path, tree))), self._name(path))
            for path, tree in self.trees.items()
            if path.name != "__init__.py"
        ]
        return max(counts)

    def files_in_a_package(self) -> Figure:
        """Of the package with most modules; `__init__` does not count."""
        folders = {path.parent for path in self.trees}
        counts = [
            Figure(sum(one.parent == folder and one.name != "__init__.py" for one in self.trees), self._name(folder))
            for folder in folders
        ]
        return max(counts)

    def names_at_a_door(self, *, but: str = "") -> Figure:
        """Of the package that hands out most names, the package `but` apart."""
        doors = {path: tree for path, tree in self.trees.items() if path.name == "__init__.py"}
        counts = [
            Figure(len(_handed_out(tree)), self._name(path.parent))
            for path, tree in doors.items()
            if path.parent not in (self._package, self._package / but)
        ]
        return max(counts, default=Figure(0, "no package"))

    def median_function(self) -> Figure:
        """Lines of the median function, without its docstring."""
        return Figure(statistics.median(one.value for one in self._functions()), "all functions")

    def longest_function(self) -> Figure:
        """Lines of the longest function, without its docstring."""
        return max(self._functions())

    def type_ignores(self) -> Figure:
        """Comments that switch the type checker off for a line."""
        return self._lines_with("# type: ignore")

    def sql_outside_the_journal(self) -> Figure:
        """Strings with SQL, in modules outside `journal`."""
        places = [
            f"{self._name(path)}:{line}"
            for path, tree in self.trees.items()
            if path.parent.name != "journal" and path.stem not in ("journal", "known")
            for line in _sql(tree)
        ]
        return Figure(len(places), " ".join(places))

    def _imported(self, path: Path, tree: ast.Module) -> Iterator[Path]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bridged":
                folder = self._package.joinpath(*(node.module or "").split(".")[1:])
                for alias in node.names:
                    inner = folder / alias.name
                    found = [inner.with_suffix(".py"), inner / "__init__.py", folder.with_suffix(".py"), folder]
                    target = next((one for one in found if one.exists()), folder)
                    if target not in (path, self._package):
                        yield target

    def _largest_class(self, measure: Callable[[ast.ClassDef], int]) -> Figure:
        return max(
            Figure(measure(node), f"{self._name(path)}:{node.name}")
            for path, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        )

    def _functions(self) -> Iterator[Figure]:
        for path, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, Function):
                    yield Figure(_length(node), f"{self._name(path)}:{node.name}")

    def _lines_with(self, mark: str) -> Figure:
        places = [
            f"{self._name(path)}:{number}"
            for path, text in self.texts.items()
            for number, line in enumerate(text.splitlines(), 1)
            if mark in line
        ]
        return Figure(len(places), " ".join(places))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._package.parent))


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Assign | ast.Delete):
        yield from node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        yield node.target


def _flat(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        for part in target.elts:
            yield from _flat(part)
    else:
        yield target


def _foreign_writes(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        written = [part for target in _targets(node) for part in _flat(target) if isinstance(part, ast.Attribute)]
        if any(not (isinstance(part.value, ast.Name) and part.value.id in ("self", "cls")) for part in written):
            yield written[0].lineno


def _fields(node: ast.ClassDef) -> set[str]:
    """A field is assigned on `self` in a method, or declared in the body of the class."""
    declared = {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign)
        and isinstance(part.target, ast.Name)
        and not ast.unparse(part.annotation).startswith(("ClassVar", "Final"))
    }
    own = {
        part.attr
        for inner in ast.walk(node)
        for target in _targets(inner)
        for part in _flat(target)
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
    }
    return declared | own


def _length(node: Function) -> int:
    first = node.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def _handed_out(tree: ast.Module) -> list[str]:
    """The names in `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return []


_SQL = re.compile(
    r"^\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER)\b"  # a statement,
    r"|\b[a-z_]+ (=|<>|<=|>=|IN|LIKE|IS) ('|\(|\?|NULL|NOT)"  # or a condition
)


def _sql(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _SQL.search(node.value):
            yield node.lineno
