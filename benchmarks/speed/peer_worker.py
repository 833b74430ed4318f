"""One timed run of unimol_tools 0.1.6 over a file of molecules, in its own environment: see against_unimol_tools.py.

unimol_tools needs numpy < 2.3, so it cannot share this package's environment. Usage: see the starter.
"""

import json
import pickle
import sys
import time

import torch
from rdkit import Chem
from unimol_tools.data.conformer import mol2unimolv2
from unimol_tools.models.unimolv2 import UniMolV2Model


def main(checkpoint: str, molecules_file: str, batch_size: int, threads: int) -> None:
    """Featurise, collate and embed in file order, as unimol_tools does; prints seconds and CLS vectors' sum."""
    torch.set_num_threads(threads)
    with open(molecules_file, "rb") as file:
        molecules = [Chem.Mol(binary) for binary in pickle.load(file)]
    model = UniMolV2Model(output_dim=1, model_size="84m", pretrained_model_path=checkpoint, remove_hs=True).eval()

    @torch.inference_mode()
    def embed(part: list[Chem.Mol]) -> torch.Tensor:
        batch, _ = model.batch_collate_fn([(mol2unimolv2(molecule), 0) for molecule in part])
        return model(**batch, return_repr=True)

    embed(molecules[:batch_size])
    start = time.perf_counter()
    vectors = [embed(molecules[at : at + batch_size]) for at in range(0, len(molecules), batch_size)]
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "molecules": len(molecules), "norm": float(torch.cat(vectors).norm())}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
