"""Predict properties for a table with a fine-tuned model; every row stays."""

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from ..data.tables import conformer_summary, read_table, require_columns
from ..errors import ModelError, TableError
from ..feature_extraction_unimol2 import UniMol2FeatureExtractor
from ..models.loading import load_regression_model
from ..pipeline_unimol2 import MoleculePropertyPipeline
from ..targets.labels import PREDICTED

CONFORMER, ERROR = "conformer", "error"
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
        TableError: the table lacks the SMILES column, has a column that is to be added, or cannot be written.
        ModelError: the folder holds no fine-tuned model.
    """
    table = read_table(data)
    require_columns(table, [smiles_column])
    pipeline = load_property_pipeline(model_dir)
    added = [*(f"{PREDICTED}{target}" for target in pipeline.model.config.target_names), CONFORMER, ERROR]
    clashing = [name for name in added if name in table.columns]
    if clashing:
        raise TableError(f"the table has columns that the predictions need: {', '.join(clashing)}; rename them")
    _check_output_file(output)
    starts = range(0, max(1, len(table)), _ROWS_AT_A_TIME)
    chunks = [table.iloc[start : start + _ROWS_AT_A_TIME] for start in starts]
    counts = {"rows": len(table), "failed": 0, "flat": 0}
    predicted = [
        _predict_chunk(pipeline, chunk, smiles_column, batch_size, num_workers, counts)
        for chunk in track(chunks, description="predicting", console=console)
    ]
    pd.concat(predicted).to_csv(output, index=False)
    console.print(
        f"{counts['rows']} rows written to {escape(str(output))}: {counts['failed']} failed "
        f"(reason in the error column), {counts['flat']} from a flat conformer"
    )
    return counts


def _check_output_file(output: Path) -> None:
    """Before the work, not after it."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()
    except OSError as error:
        raise TableError(f"{output} cannot be written: {error}") from error


def load_property_pipeline(model_dir: str) -> MoleculePropertyPipeline:
    """The pipeline of a fine-tuned model.

    Raises:
        ModelError: the folder or Hub id cannot be loaded as one.
    """
    model = load_regression_model(model_dir)
    try:
        extractor = UniMol2FeatureExtractor.from_pretrained(model_dir)
    except OSError as error:
        raise ModelError(f"{model_dir} has no feature extractor: {error}") from error
    return MoleculePropertyPipeline(model=model.eval(), feature_extractor=extractor)


def _predict_chunk(
    pipeline: MoleculePropertyPipeline,
    chunk: pd.DataFrame,
    smiles_column: str,
    batch_size: int,
    num_workers: int,
    counts: dict[str, int],
) -> pd.DataFrame:
    smiles = chunk[smiles_column].tolist()
    results = pipeline(smiles, batch_size=batch_size, num_workers=num_workers)
    chunk = chunk.copy()
    for target in pipeline.model.config.target_names:
        values = [None if r["predictions"] is None else r["predictions"][target] for r in results]
        chunk[f"{PREDICTED}{target}"] = values
    chunk[CONFORMER] = [conformer_summary(c["method"] for c in result["conformers"]) for result in results]
    chunk[ERROR] = [result["error"] or "" for result in results]
    counts["failed"] += sum(result["error"] is not None for result in results)
    counts["flat"] += sum(any(not c["is_3d"] for c in result["conformers"]) for result in results)
    return chunk
