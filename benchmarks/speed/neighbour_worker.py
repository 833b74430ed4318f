"""One job in a process of its own: see neighbour.py. Reads lines "START END", answers with seconds."""

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from turns import answer_turns

from unimol2_hf import NANO, UniMol2FeatureExtractor, UniMol2ForPropertyRegression, UniMol2Model, keep_freed_memory
from unimol2_hf.pipeline_unimol2 import MoleculeEmbeddingPipeline

DRUGS = Path(__file__).parents[2] / "examples" / "drugs.csv"
TRAINED, EMBEDDED = 16, 32


def training() -> Callable[[], object]:
    """Forward, backward and AdamW of one batch, float32, dropout on."""
    model = UniMol2ForPropertyRegression.from_pretrained(NANO, num_labels=1).train()
    batch = UniMol2FeatureExtractor()(pd.read_csv(DRUGS)["smiles"].head(TRAINED).tolist())
    labels = torch.randn(TRAINED, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def embedding() -> Callable[[], object]:
    """Vectors of one batch of conformers, as `unimol2-hf embed` makes them."""
    model, extractor = UniMol2Model.from_pretrained(NANO).eval(), UniMol2FeatureExtractor()
    pipeline = MoleculeEmbeddingPipeline(model=model, feature_extractor=extractor, device="cpu")
    pipeline.pack_weights()
    molecules = list(extractor.featurize(pd.read_csv(DRUGS)["smiles"].head(EMBEDDED).tolist()))
    return lambda: list(pipeline.run_featurized(molecules, EMBEDDED))


JOBS = {"training": training, "embedding": embedding}


def main(job: str, threads: int) -> None:
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    work = JOBS[job]()
    answer_turns(lambda part: [work() for _ in part], list(range(1000)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
