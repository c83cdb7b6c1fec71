"""Tests of the project: layers, packaging, documentation, examples, reports."""
