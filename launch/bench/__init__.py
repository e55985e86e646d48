"""Benchmarks: `headwater bench NAME` calls `main(arguments: list[str])` of the module of that name."""
