"""Pretraining on masked atoms and noised conformers (arXiv 2406.14969, section 3)."""
