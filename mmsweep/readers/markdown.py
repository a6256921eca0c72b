"""Escapes text for Markdown, as GitHub and MLflow read it."""

from __future__ import annotations

import html
import re

# Underscores within words are literal; at the edge of a word they mark emphasis.
_SPECIAL = re.compile(r"[\\`*\[|~]|(?<!\w)_|_(?!\w)")


def markdown_text(text: str) -> str:
    """Text on one line with Markdown, HTML and table borders escaped."""
    return _SPECIAL.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
