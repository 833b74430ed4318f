"""Uni-Mol2 models by name: registered with Transformers, loaded with checks, one of them in the package."""
