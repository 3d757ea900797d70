"""Lets PyTorch's TorchScript exporter write involution as the node ``rednet::Involution2d``."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.onnx.symbolic_helper import parse_args

from rednet.ops.tracing import keeping_operator

DOMAIN = "rednet"
VERSION = 1
# From this version of the standard operators on, the exporter asks for our node.
_FIRST_OPSET = 11
_STDERR = 2


@contextmanager
def recorded_as_one_operator() -> Iterator[None]:
    """Inside, ``torch.onnx.export(dynamo=False)`` writes involution as one node."""
    name = f"{DOMAIN}::involution2d"
    torch.onnx.register_custom_op_symbolic(name, _node, _FIRST_OPSET)
    with keeping_operator(), _without_notes():
        yield


@parse_args("v", "v", "is", "is", "is")
def _node(
    graph: Any, input: Any, weight: Any, stride: list[int], padding: list[int], dilation: list[int]
) -> Any:
    window = dict(stride_i=stride, padding_i=padding, dilation_i=dilation)
    output = graph.op(f"{DOMAIN}::Involution2d", input, weight, **window)
    known, size = input.type().varyingSizes(), weight.type().varyingSizes()
    if known and size:
        output.setType(input.type().with_sizes([*known[:2], *size[4:]]))
    return output


@contextmanager
def _without_notes() -> Iterator[None]:
    """Drops what PyTorch's C++ code writes to stderr about our operator: no Python warnings.

    Namely that it cannot infer a node's shape, on which nothing depends, and that a graph has none.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notes:
        stderr = os.dup(_STDERR)
        os.dup2(notes.fileno(), _STDERR)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            notes.seek(0)
            ours = (b"Warning", DOMAIN.encode())
            rest = [line for line in notes if not all(word in line for word in ours)]
            os.write(_STDERR, b"".join(rest))
