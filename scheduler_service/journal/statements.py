"""Named statements: files of `-- name --`, comment lines, the statement; read once when the package is imported."""

import re
from pathlib import Path
from typing import Final, LiteralString, cast

_NAME: Final = re.compile(r"^-- (\w+) --$", re.MULTILINE)


def load_statements(path: Path) -> dict[str, LiteralString]:
    """The statements of a file by name. Their text is ours alone, hence a literal: no caller's value gets into it."""
    parts = _NAME.split(path.read_text(encoding="utf-8"))[1:]
    statements = {name: text.strip().removesuffix(";") for name, text in zip(parts[::2], parts[1::2], strict=True)}
    return cast("dict[str, LiteralString]", statements)
