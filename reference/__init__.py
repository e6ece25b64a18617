"""The same functions in pure PyTorch: the specification every kernel is tested against, bit for bit."""
