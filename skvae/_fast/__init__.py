"""What is fast: hand-written gradients and bare optimizers in training, oneDNN's products at inference."""
