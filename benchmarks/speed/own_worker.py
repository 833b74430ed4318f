"""One timed run of this package over a file of molecules; started by against_unimol_tools.py."""

import json
import pickle
import sys
import time

import numpy as np
import torch
from rdkit import Chem

from unimol2_hf import UniMol2FeatureExtractor, UniMol2Model
from unimol2_hf.pipeline_unimol2 import MoleculeEmbeddingPipeline


def main(folder: str, molecules_file: str, batch_size: int, threads: int) -> None:
    """Featurise, batch and embed through the pipeline that users call; prints seconds and CLS vectors' norm."""
    torch.set_num_threads(threads)
    with open(molecules_file, "rb") as file:
        molecules = [Chem.Mol(binary) for binary in pickle.load(file)]
    model = UniMol2Model.from_pretrained(folder).eval()
    pipeline = MoleculeEmbeddingPipeline(model=model, feature_extractor=UniMol2FeatureExtractor(), device="cpu")
    pipeline(molecules[:batch_size], batch_size=batch_size)
    start = time.perf_counter()
    vectors = np.stack([result["embedding"] for result in pipeline(molecules, batch_size=batch_size)])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "molecules": len(molecules), "norm": float(np.linalg.norm(vectors))}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
