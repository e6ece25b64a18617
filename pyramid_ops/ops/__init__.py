"""One file a family: what an op checks, documents and calls."""
