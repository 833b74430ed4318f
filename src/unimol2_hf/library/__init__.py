"""Whole libraries of molecules: files in, Parquet shards out, resumable at any moment."""
