"""A griffe extension: reStructuredText markup in docstrings becomes Markdown for the web site.

The docstrings use Sphinx's inline markup, which editors and `help()` show well; mkdocstrings reads
Markdown.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

LINK = re.compile(r"`([^`<]+?)\s*<(\S+?)>`_+")
ROLE = re.compile(r":(?:py:)?\w+:`~?([^`]+)`")
LITERAL = re.compile(r"``([^`]+)``")
MATH = re.compile(r":math:`([^`]+)`")
EXAMPLE = re.compile(r"^Example:$", re.M)
MATH_BLOCK = re.compile(r"^\.\. math::\n((?:[ \t]+.*\n?|\n)+)", re.M)


def to_markdown(text: str) -> str:
    """Converts links, roles, literals and formulas, and makes examples a section of code."""
    text = EXAMPLE.sub("Examples:", text)
    text = MATH.sub(r"`\1`", text)
    text = LINK.sub(lambda match: f"[{' '.join(match[1].split())}]({match[2]})", text)
    text = ROLE.sub(r"`\1`", text)
    text = LITERAL.sub(r"`\1`", text)
    return MATH_BLOCK.sub(_code_block, text)


def _code_block(match: re.Match[str]) -> str:
    return f"```text\n{textwrap.dedent(match[1]).strip()}\n```\n\n"


class MarkdownDocstrings(Extension):
    """Converts every docstring that is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Converts the docstring of a module, class, function or attribute."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
