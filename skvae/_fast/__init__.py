"""Fast steps: hand-written gradients, products by oneDNN, bare optimizers."""
