#!/usr/bin/env python3
"""Convert an official Uni-Mol2 checkpoint; the same as `unimol2-hf convert CHECKPOINT OUTPUT_DIR [--verify]`."""

import sys

from unimol2_hf.cli.app import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
