"""The README's Python runs as it stands; only the Hub id is replaced by a folder."""

import re
from pathlib import Path

import pytest

from unimol2_hf import UniMol2FeatureExtractor, UniMol2ForPropertyRegression

README = Path(__file__).parents[1] / "README.md"


def test_readme_examples_run(
    property_model: UniMol2ForPropertyRegression, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    property_model.save_pretrained(tmp_path / "model")
    UniMol2FeatureExtractor().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("org/unimol2-84m", str(tmp_path / "model")), namespace)
    assert namespace["output"].pooler_output.shape == (2, 64)  # type: ignore[attr-defined]
    assert (tmp_path / "to_publish" / "modeling_unimol2.py").is_file()
