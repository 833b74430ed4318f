#!/usr/bin/env python3
"""Convert an official Uni-Mol2 checkpoint to a folder that Transformers loads.

    python conversion/convert_unimol2_to_hf.py CHECKPOINT OUTPUT_DIR [--verify]

CHECKPOINT is a file (`checkpoint.pt` of the reference's trainer, or `model_*.pth` of unimol_tools) or a Hub id:
`owner/repo` with `--filename`, or `owner/repo/path/to/checkpoint.pt`.
"""

import cyclopts

from unimol2_hf.hub.convert import main

if __name__ == "__main__":
    cyclopts.run(main)
