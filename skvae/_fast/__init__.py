"""What is fast: hand-written gradients, graphs of steps, bare optimizers, and oneDNN's products at inference."""
