#!/usr/bin/env python3
"""Publish official checkpoints; the same as `unimol2-hf publish --scale S --checkpoint F --output-dir D`."""

import sys

from unimol2_hf.cli.app import main

if __name__ == "__main__":
    main(["publish", *sys.argv[1:]])
