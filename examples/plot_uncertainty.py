"""
================================================
How sure is it where in latent space a row lies?
================================================

The encoder answers with a distribution, not with a point. `transform` returns its mean; `posterior` returns mean and
standard deviation.
"""

# %%
# Rows as ellipses
# ----------------
# Three cultivars of wine in two latent features; each ellipse is two standard deviations of q(z | x).
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import EllipseCollection
from sklearn.datasets import load_wine

from skvae import VAETransformer

X, y = load_wine(return_X_y=True)
vae = VAETransformer(2, max_iter=60, early_stopping=False, random_state=0).fit(X)
mean, std = vae.posterior(X)

fig, ax = plt.subplots(figsize=(6, 5), layout="constrained")
colors = plt.cm.tab10(y)
ellipses = EllipseCollection(
    *(4 * std.T),
    np.zeros(len(X)),
    units="xy",
    offsets=mean,
    offset_transform=ax.transData,
    facecolor=colors,
    alpha=0.15,
)
ax.add_collection(ellipses)
ax.scatter(*mean.T, c=colors, s=8)
ax.set(xlabel="z1", ylabel="z2")
plt.show()

# %%
# Several plausible codes of one row
# ----------------------------------
# Draws from the posterior, decoded, show what the code leaves open: the spread of the decoded values is small beside
# that of the table.
rng = np.random.default_rng(0)
draws = mean[0] + std[0] * rng.normal(size=(200, 2))
open_ = vae.inverse_transform(draws).std(axis=0) / X.std(axis=0)
print(f"spread of 200 decoded draws of the first wine, in standard deviations: {np.median(open_):.2f} (median)")
