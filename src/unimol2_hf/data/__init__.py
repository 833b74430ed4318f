"""Molecules at rest: files, tables, splits, scaffolds, Parquet shards and libraries of conformers."""
