"""unimol_tools 0.1.6 over a file of molecules, in its own environment: see against_unimol_tools.py.

unimol_tools needs numpy < 2.3, so it cannot share this package's environment. Reads lines "START END", answers each
with the seconds that those molecules took: in file order, padded by its own collate function, as it ships.
"""

import sys

import torch
from rdkit import Chem
from turns import answer_turns, read_molecules
from unimol_tools.data.conformer import mol2unimolv2
from unimol_tools.models.unimolv2 import UniMolV2Model


def main(checkpoint: str, molecules_file: str, batch_size: int, threads: int, what: str) -> None:
    """`what`: embed (featurise, collate, encode) or featurize."""
    torch.set_num_threads(threads)
    molecules = read_molecules(molecules_file)
    if what == "embed":
        model = UniMolV2Model(output_dim=1, model_size="84m", pretrained_model_path=checkpoint, remove_hs=True).eval()

    @torch.inference_mode()
    def embed(part: list[Chem.Mol]) -> None:
        batch, _ = model.batch_collate_fn([(mol2unimolv2(molecule), 0) for molecule in part])
        model(**batch, return_repr=True)

    def work(part: list[Chem.Mol]) -> None:
        if what == "embed":
            for at in range(0, len(part), batch_size):
                embed(part[at : at + batch_size])
        else:
            for molecule in part:
                mol2unimolv2(molecule)

    work(molecules[:batch_size])
    answer_turns(work, molecules)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
