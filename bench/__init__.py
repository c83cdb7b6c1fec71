"""Timings of the jobs and the report on them: `make bench`, `python -m bench report`. No part of what is installed."""
