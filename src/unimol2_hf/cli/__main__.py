"""`python -m unimol2_hf.cli`, as torchrun starts it."""

from .app import main

main()
