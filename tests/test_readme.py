"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pandas as pd
import pytest

README = Path(__file__).parents[1] / "README.md"


def test_readme_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
    assert namespace["output"].pooler_output.shape == (2, 192)  # type: ignore[attr-defined]
    assert (tmp_path / "to_publish" / "modeling_unimol2.py").is_file()


@pytest.mark.slow
def test_the_page_for_scikit_learn_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drugs = pd.read_csv(README.parent / "examples" / "drugs.csv").head(60)
    (block,) = re.findall(r"```python\n(.*?)```", (README.parent / "docs" / "coming_from.md").read_text(), re.DOTALL)
    exec(block, {"smiles": drugs["smiles"], "y": drugs["tpsa"], "new_smiles": ["CCO", "CCN"]})
    assert (tmp_path / "model" / "calibration.json").is_file()


def test_commands_of_the_page_are_known() -> None:
    """Every option that the page names for a command is one of it."""
    options = (README.parent / "src" / "unimol2_hf" / "cli" / "OPTIONS.md").read_text()
    page = (README.parent / "docs" / "coming_from.md").read_text()
    ours = [line.split("|")[2] for line in page.splitlines() if line.startswith("|") and line.count("|") == 3]
    named = {flag for cell in ours for flag in re.findall(r"--[a-z][a-z-]*", cell)}
    assert len(named) > 15
    assert not {flag for flag in named if f"`{flag}`" not in options} - {"--output-dir", "--output"}
