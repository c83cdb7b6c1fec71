"""Docstrings in Markdown: what numpydoc writes otherwise, for the site alone (mkdocs.yml names this file)."""

import re
from typing import Any

import griffe

ITEM = re.compile(r"^( *\*{0,2}\w[\w, *]* : )(.*)$", re.MULTILINE)  # name : type
AS_IT_IS = "\u200b"  # a zero-width space keeps griffe from reading a type as Python, and from dropping its quotes
PUBLIC = re.compile(r"(?<![\w`])`(fastvae(?:\.\w+)+)`(?!`)")


def in_markdown(text: str) -> str:
    """A docstring: types without backticks, ``::`` before a block as one colon, public names as links."""
    text = ITEM.sub(lambda item: item[1] + AS_IT_IS + item[2].replace("`", ""), text)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return PUBLIC.sub(r"[`\1`][\1]", text)


class Numpydoc(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of a module, class or function."""
        if obj.docstring:
            obj.docstring.value = in_markdown(obj.docstring.value)
