"""The model: components, the VAE, the linear model, posteriors of incomplete rows."""
