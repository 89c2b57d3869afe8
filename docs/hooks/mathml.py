"""Renders the formulas of the documentation as MathML when the site is built.

``pymdownx.arithmatex`` marks formulas in the HTML of a page; this MkDocs hook replaces each by MathML, which
every current browser displays by itself: no script, nothing loaded from elsewhere.
"""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from typing import Any

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.mathml")

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
# A named function and its argument need a thin space unless a bracket, a subscript or an end follows.
_FUNCTION = re.compile(r"(<mi>(?:log|exp|det|tr|max|min)</mi>)(?=<m(?:i|n|sub|sup|subsup|over)>)")
# Browsers ignore mathvariant="script"; the letters themselves exist in Unicode.
_SCRIPT = re.compile(r'<mi mathvariant="script">([A-Z])</mi>')
# What the converter does not know it passes through: a command, or the ampersand of an alignment.
_NOT_CONVERTED = re.compile(r"\\|&(?!#?\w+;)")


def on_page_content(page_html: str, *, page: Any, **_: Any) -> str:
    """Replaces the formulas in the HTML of one page.

    Args:
        page_html: The page's content.
        page: The MkDocs page, named in warnings.

    Returns:
        The content with MathML; a formula that cannot be converted stays and is warned about, which fails a
        strict build.
    """

    def render(formula: str, display: str) -> str:
        source = html.unescape(formula).strip()
        try:
            mathml = convert(source, display=display)
        except Exception as error:
            log.warning("%s: cannot convert the formula %r: %s", page.file.src_uri, source, error)
            return html.escape(source)
        if _NOT_CONVERTED.search(mathml):
            log.warning("%s: the formula %r uses what latex2mathml does not know", page.file.src_uri, source)
        mathml = _SCRIPT.sub(lambda match: f"<mi>{_script(match[1])}</mi>", mathml)
        return _FUNCTION.sub(r'\1<mspace width="0.167em"/>', mathml)

    page_html = _DISPLAY.sub(lambda match: f'<div class="arithmatex">{render(match[1], "block")}</div>', page_html)
    return _INLINE.sub(lambda match: render(match[1], "inline"), page_html)


def _script(letter: str) -> str:
    try:
        return unicodedata.lookup(f"MATHEMATICAL SCRIPT CAPITAL {letter}")
    except KeyError:  # some letters were in Unicode before the others, under an older name
        return unicodedata.lookup(f"SCRIPT CAPITAL {letter}")
