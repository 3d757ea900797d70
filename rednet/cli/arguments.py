"""The arguments that commands have in common."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from typing import Any

from mmengine.config import DictAction

from rednet.errors import UserError

TRACEBACK = "--traceback"
DEFAULT_SIZE = (224, 224)
DEFAULT_SIZES = {"mmdet": (800, 1280), "mmseg": (1024, 2048)}


class OptionsAction(DictAction):
    """mmengine's ``DictAction``, with a :class:`UserError` for what it cannot read."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Adds the options to those given before.

        Raises:
            UserError: If one is not ``key=value`` or its brackets do not close.
        """
        for value in values or ():
            if not value.partition("=")[0].strip() or "=" not in value:
                raise UserError(f"{option_string} expects key=value, got {value!r}")
            key, _, text = value.partition("=")
            if "dict(" in text or "{" in text:
                options = dict(getattr(namespace, self.dest) or {})
                options[key.strip()] = _read_expression(f"{option_string} {value}", text)
                setattr(namespace, self.dest, options)
                continue
            try:
                super().__call__(parser, namespace, [value], option_string)
            except AssertionError as error:  # mmengine's way to say so
                raise UserError(f"{option_string} {value}: its brackets do not close") from error


def _read_expression(what: str, text: str) -> Any:
    """Reads dicts and lists in Python's notation, in which names need no quotes.

    Args:
        what: The option, for the error message.
        text: Such as ``[dict(type=EMAHook, momentum=0.1)]``.

    Raises:
        UserError: If it is something else than dicts, lists, tuples, numbers, texts and names.
    """
    try:
        return _value_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise UserError(
            f"{what}: expected dict(key=value), lists, numbers and names, got {text!r}"
        ) from error


def _value_of(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        if ast.unparse(node.func) != "dict" or node.args:
            raise ValueError("a call of something else than dict")
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("**kwargs")
        return {str(keyword.arg): _value_of(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("**kwargs")
        pairs = zip(node.keys, node.values, strict=True)
        return {_value_of(key): _value_of(value) for key, value in pairs if key is not None}
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value_of(each) for each in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, (ast.Name, ast.Attribute)):
        return ast.unparse(node)  # mmdet.SomeType, unquoted
    return ast.literal_eval(node)


def positive(text: str) -> int:
    """Reads a number of an argument that must be at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def config_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of the arguments that all tools around a config have.

    Args:
        description: What the tool does; all but its first paragraph follows the arguments.
    """
    summary, _, details = (description or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument("config", help="config file, of mmpretrain's, mmdet's or mmseg's form")
    add_config_options(parser)
    return parser


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cfg-options`` and ``--traceback``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=OptionsAction,
        metavar="KEY=VALUE",
        help="change fields of the config: a.b=1 list='[1,2]' pair='(1,2)' text=x",
    )
    # rednet.cli.command.run looks for it itself: an error may come from reading the arguments.
    parser.add_argument(TRACEBACK, action="store_true", help="print the traceback of an error")


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the tools that build a runner."""
    parser.add_argument("--work-dir", help="folder for logs and results (work_dirs/<config>)")
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision: float16 on a GPU, bfloat16 on a CPU"
    )
    parser.add_argument(
        "--no-pin-memory", action="store_true", help="no pinned memory in data loaders"
    )
    parser.add_argument(
        "--no-persistent-workers", action="store_true", help="new loader workers in every epoch"
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how the processes of a distributed run were started",
    )
    # torch.distributed.launch passes --local-rank, before torch 2 --local_rank
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def image_size(shape: Sequence[int] | None, scope: str | None = None) -> tuple[int, int]:
    """The height and width of the images of a tool.

    Args:
        shape: What ``--shape`` was given: height and width, or one number for both.
        scope: The library whose usual size it is without; by default 224 x 224.

    Raises:
        UserError: If the shape is neither.
    """
    if shape is None:
        return DEFAULT_SIZES.get(scope or "", DEFAULT_SIZE)
    if len(shape) > 2 or min(shape) < 1:
        raise UserError(f"--shape expects a height and a width of at least 1, got {list(shape)}")
    return shape[0], shape[-1]
