"""This package over a file of molecules: see against_unimol_tools.py. Reads lines "START END", answers with seconds."""

import sys

import torch
from turns import answer_turns, read_molecules

from unimol2_hf import UniMol2FeatureExtractor, UniMol2Model, keep_freed_memory
from unimol2_hf.pipeline_unimol2 import MoleculeEmbeddingPipeline


def main(folder: str, molecules_file: str, batch_size: int, threads: int, what: str) -> None:
    """`what`: embed (the pipeline that users call, featurisation included), packed, compiled, or featurize.

    Packed and compiled keep freed memory, as `unimol2-hf embed` does.
    """
    if what in ("packed", "compiled"):
        keep_freed_memory()
    torch.set_num_threads(threads)
    molecules = read_molecules(molecules_file)
    extractor = UniMol2FeatureExtractor()
    if what == "featurize":
        work = lambda part: list(extractor.featurize(part))  # noqa: E731
    else:
        model = UniMol2Model.from_pretrained(folder).eval()
        pipeline = MoleculeEmbeddingPipeline(model=model, feature_extractor=extractor, device="cpu")
        if what == "packed":
            pipeline.pack_weights()
        if what == "compiled":
            pipeline.compile_model()
        work = lambda part: pipeline(part, batch_size=batch_size)  # noqa: E731
    work(molecules[:batch_size])
    work(molecules[:batch_size])
    answer_turns(work, molecules)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
