"""Benchmarks and the report on them: `make bench`, `python -m bench report`. Not part of the installed package."""
