"""Predict properties for a table with a fine-tuned model; every row stays."""

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import track

from ..errors import TableError, UniMol2Error
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor
from ..modeling_unimol2 import UniMol2ForPropertyRegression
from ..pipeline_unimol2 import MoleculePropertyPipeline
from .tables import read_table, require_columns

_ROWS_AT_A_TIME = 1024


def predict(
    model_dir: str,
    data: Path,
    output: Path,
    smiles_column: str,
    batch_size: int,
    num_workers: int,
    console: Console,
) -> dict[str, int]:
    """Write the table with `predicted_<target>`, `conformer` and `error` columns added, in the input's order.

    Returns:
        `rows`, `failed` and `flat` (rows with a conformer that is not 3D).

    Raises:
        TableError: the table lacks the SMILES column, or the folder holds no fine-tuned model.
    """
    table = read_table(data)
    require_columns(table, [smiles_column])
    pipeline = load_property_pipeline(model_dir)
    chunks = [table.iloc[start : start + _ROWS_AT_A_TIME] for start in range(0, len(table), _ROWS_AT_A_TIME)]
    output.parent.mkdir(parents=True, exist_ok=True)
    counts = {"rows": len(table), "failed": 0, "flat": 0}
    predicted = [
        _predict_chunk(pipeline, chunk, smiles_column, batch_size, num_workers, counts)
        for chunk in track(chunks, description="predicting", console=console)
    ]
    pd.concat(predicted or [table]).to_csv(output, index=False)
    console.print(
        f"{counts['rows']} rows written to {output}: {counts['failed']} failed (reason in the error column), "
        f"{counts['flat']} from a flat conformer"
    )
    return counts


def load_property_pipeline(model_dir: str) -> MoleculePropertyPipeline:
    """The pipeline of a fine-tuned model.

    Raises:
        TableError: the folder or Hub id cannot be loaded as one.
    """
    try:
        extractor = UniMol2FeatureExtractor.from_pretrained(model_dir)
        model, loading = UniMol2ForPropertyRegression.from_pretrained(model_dir, output_loading_info=True)
    except (OSError, UniMol2Error) as error:
        raise TableError(f"{model_dir} holds no fine-tuned model: {error}") from error
    missing = [name for name in loading["missing_keys"] if name.startswith("classifier.")]
    if missing:
        raise TableError(f"{model_dir} is not fine-tuned: its task head has no weights; run unimol2-hf finetune first")
    return MoleculePropertyPipeline(model=model.eval(), feature_extractor=extractor)


def _predict_chunk(
    pipeline: MoleculePropertyPipeline,
    chunk: pd.DataFrame,
    smiles_column: str,
    batch_size: int,
    num_workers: int,
    counts: dict[str, int],
) -> pd.DataFrame:
    smiles = chunk[smiles_column].fillna("").tolist()
    results = pipeline(smiles, batch_size=batch_size, num_workers=num_workers)
    chunk = chunk.copy()
    for target in pipeline.model.config.target_names:
        values = [None if r["predictions"] is None else r["predictions"][target] for r in results]
        chunk[f"predicted_{target}"] = values
    chunk["conformer"] = ["+".join(dict.fromkeys(c["method"] for c in result["conformers"])) for result in results]
    chunk["error"] = [result["error"] or "" for result in results]
    counts["failed"] += sum(result["error"] is not None for result in results)
    counts["flat"] += sum(any(not c["is_3d"] for c in result["conformers"]) for result in results)
    return chunk
