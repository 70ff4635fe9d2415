"""Reading JSON that anyone may have written."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Parse a document.

    Raises:
        ValueError: It is no JSON, no UTF-8, or nested deeper than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
