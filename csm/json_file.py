"""JSON objects out of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from csm.errors import CsmError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CsmError: the file is missing, is not JSON (line and column named), cannot be taken in, or holds no object.
    """
    if not path.is_file():
        raise CsmError(f"{path} is not there.")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise CsmError(f"{path} is not text.") from None
    except json.JSONDecodeError as error:
        raise CsmError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except (RecursionError, ValueError) as error:  # nested thousands deep, or a number of thousands of digits
        raise CsmError(f"{path} cannot be read: {error}.") from None
    if not isinstance(value, dict):
        raise CsmError(f"{path} holds no JSON object.")
    return value
