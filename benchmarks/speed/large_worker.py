"""The 1.1B model under a memory limit, through the pipeline that users call: see growth.py."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from harness import peak_memory_mib, reset_peak_memory, seconds_of

from unimol2_hf import UniMol2Config, UniMol2FeatureExtractor, UniMol2Model
from unimol2_hf.pipeline_unimol2 import MoleculeEmbeddingPipeline

MOLECULES = 16
LARGE = 256


def main(folder: Path, table: Path, limit_gib: int, threads: int) -> None:
    """Make random weights where there are none, then load and embed under the limit."""
    torch.set_num_threads(threads)
    extractor = UniMol2FeatureExtractor()
    molecules = pd.read_csv(table)["smiles"].head(MOLECULES).tolist()
    featurized = list(extractor.featurize(molecules))
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        UniMol2Model(UniMol2Config.from_scale("1.1b")).save_pretrained(folder)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_gib * 2**30, limit_gib * 2**30))
    reset_peak_memory()
    model = UniMol2Model.from_pretrained(folder).eval()
    pipeline = MoleculeEmbeddingPipeline(model=model, feature_extractor=extractor, device="cpu")
    list(pipeline.run_featurized(featurized[:1], 1))
    results: list[dict[str, object]] = []
    seconds = seconds_of(lambda: results.extend(pipeline.run_featurized(featurized, 32)))
    # A line of carbon atoms: its time and memory are those of any molecule of its size.
    positions = np.arange(LARGE)[:, None] * np.array([1.25, 0.1, 0.0])
    results.append(pipeline(([6] * LARGE, positions)))
    if any(result["error"] is not None for result in results):
        raise RuntimeError(f"not every molecule was embedded: {[result['error'] for result in results]}")
    report = {"molecules": MOLECULES, "molecules_per_second": MOLECULES / seconds, "peak_mib": peak_memory_mib()}
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
