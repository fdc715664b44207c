"""What makes steps fast: hand-written gradients, products by oneDNN, bare optimizers."""
