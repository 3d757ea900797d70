"""Small faults that can be put into a module's source, one at a time."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In},
}
_OPERATORS: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult},
    **{ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr},
    **{ast.And: ast.Or, ast.Or: ast.And},
}
_LOOKUPS = {"get", "pop", "setdefault", "getattr", "hasattr", "startswith", "endswith"}
_MESSAGES = {"warn", "warning", "info", "debug"}
_NOT_EXECUTED = {"annotation", "returns", "decorator_list", "ctx", "type_comment"}


@dataclass(frozen=True)
class Site:
    """A place in a syntax tree where a node stands.

    Attributes:
        parent: The node above it.
        field: The parent's attribute.
        index: Its position, if the attribute is a list.
        lines: The lines of the statement, without those of the statements in it. Of an argument's
            default, those of the function; of a statement outside functions, none.
    """

    parent: ast.AST
    field: str
    index: int | None
    lines: range

    @property
    def node(self) -> ast.AST:
        """What stands there."""
        value = getattr(self.parent, self.field)
        return value if self.index is None else value[self.index]

    def put(self, node: ast.AST) -> None:
        """Replaces what stands there."""
        ast.fix_missing_locations(ast.copy_location(node, self.node))
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutations(tree: ast.Module) -> list[tuple[Site, ast.AST]]:
    """Each place of a module with each node that can stand there instead."""
    return [(site, new) for site in _sites(tree, range(0)) for new in _replacements(site)]


def _sites(parent: ast.AST, lines: range) -> Iterator[Site]:
    for field, value in ast.iter_fields(parent):
        if field in _NOT_EXECUTED:
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or _is_text(node):
                continue
            own = _lines_of(node, lines)
            yield Site(parent, field, index if isinstance(value, list) else None, own)
            if not _is_message(node):
                yield from _sites(node, own)


def _lines_of(node: ast.AST, lines: range) -> range:
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        return range(node.lineno, _end(node) + 1)
    if not isinstance(node, ast.stmt) or not lines:  # `lines` is empty outside functions
        return lines
    body: list[ast.stmt] = getattr(node, "body", [])
    return range(node.lineno, max(body[0].lineno, node.lineno + 1) if body else _end(node) + 1)


def _end(node: ast.stmt | ast.expr) -> int:
    return node.end_lineno or node.lineno


def _is_text(node: ast.AST) -> bool:
    """Whether it is a docstring, a message, an import or only there for a type checker."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    if isinstance(node, ast.Raise):
        return "NotImplementedError" in ast.unparse(node)
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) in ("__all__", "__slots__", "priority")
    return isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom))


def _is_message(node: ast.AST) -> bool:
    call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return isinstance(node, ast.Raise) or (call and node.func.attr in _MESSAGES)  # type: ignore


def _replacements(site: Site) -> Iterator[ast.AST]:
    node = site.node
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        changed = copy.deepcopy(node)
        changed.ops[0] = _COMPARISONS[type(node.ops[0])]()
        yield changed
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in _OPERATORS:
        other = copy.deepcopy(node)
        other.op = _OPERATORS[type(node.op)]()
        yield other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield copy.deepcopy(node.operand)
    elif isinstance(node, ast.Constant):
        yield from _other_constant(node, site)
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)) and not _changed_anyway(node.test):
        negated = copy.deepcopy(node)
        negated.test = ast.UnaryOp(ast.Not(), negated.test)
        yield negated
    if isinstance(node, ast.Return) and node.value is not None:
        if ast.unparse(node.value) != "None":
            yield ast.Return(ast.Constant(None))
    elif _removable(node):
        yield ast.Pass()


def _changed_anyway(test: ast.expr) -> bool:
    """Whether another mutation negates it."""
    equality = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    compared = isinstance(test, ast.Compare) and isinstance(test.ops[0], equality)
    return compared or (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not))


def _other_constant(node: ast.Constant, site: Site) -> Iterator[ast.AST]:
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield ast.Constant(value + 1)
    elif isinstance(value, str) and _is_key(site):
        yield ast.Constant(f"{value}_")


def _is_key(site: Site) -> bool:
    parent = site.parent
    if isinstance(parent, ast.Call):
        return ast.unparse(parent.func).rpartition(".")[2] in _LOOKUPS
    keys = isinstance(parent, ast.Dict) and site.field == "keys"
    return keys or isinstance(parent, (ast.Subscript, ast.Compare))


def _removable(node: ast.AST) -> bool:
    if isinstance(node, (ast.Assign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        stored = any(isinstance(each, (ast.Attribute, ast.Subscript)) for each in targets)
        return stored or isinstance(node, ast.AugAssign)
    call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return call or isinstance(node, (ast.Raise, ast.Continue, ast.Break, ast.Delete))
