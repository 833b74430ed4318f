"""One job of one version: see versions.py. Reads lines "START END", answers with seconds."""

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from harness import random_batch
from turns import answer_turns

from unimol2_hf import UniMol2Config, UniMol2FeatureExtractor, UniMol2Model, keep_freed_memory
from unimol2_hf.packed_linear import pack_linear_layers
from unimol2_hf.pipeline_unimol2 import MoleculeEmbeddingPipeline

DRUGS = Path(__file__).parents[2] / "examples" / "drugs.csv"
MOLECULES, BATCH = 48, 32


def job_of(name: str) -> Callable[[], object]:
    torch.manual_seed(0)
    model = UniMol2Model(UniMol2Config.from_scale("84m")).eval()
    if name != "forward":
        pack_linear_layers(model)
    if name == "embedding":
        extractor = UniMol2FeatureExtractor()
        pipeline = MoleculeEmbeddingPipeline(model=model, feature_extractor=extractor, device="cpu")
        molecules = list(extractor.featurize(pd.read_csv(DRUGS)["smiles"].head(MOLECULES).tolist()))
        return lambda: list(pipeline.run_featurized(molecules, BATCH))
    batch = random_batch(8, 25)

    @torch.no_grad()
    def forward() -> object:
        return model(**batch, read_out="cls")

    return forward


def main(name: str, threads: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(threads)
    work = job_of(name)
    answer_turns(lambda part: [work() for _ in part], list(range(1000)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
