"""What a Markdown file gives its reader to run."""

import re
from pathlib import Path


def code_blocks(path: Path, language: str) -> list[str]:
    """The blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), flags=re.DOTALL)
