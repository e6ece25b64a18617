"""From scores to what the model reads: which tokens merge into which."""
