"""Of the project: layers, packaging, pages, examples, reports."""
