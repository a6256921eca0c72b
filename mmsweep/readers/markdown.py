"""Markdown for GitHub and MLflow."""

from __future__ import annotations

import html
import re

# An underscore within a word is an underscore; at a word's edge it starts or ends emphasis.
_SPECIAL = re.compile(r"[\\`*\[|~]|(?<!\w)_|_(?!\w)")


def markdown_text(text: str) -> str:
    """Text on one line with Markdown, HTML and table borders escaped."""
    return _SPECIAL.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
