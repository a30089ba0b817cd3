"""What mkdocs does to a page beside its plugins."""

from __future__ import annotations

import re
from typing import Any


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name code with Sphinx's roles (``:class:`X```), of which Markdown knows the code alone."""
    return re.sub(r":(class|func|mod|data|attr|meth):(?=<code>)", "", html)
