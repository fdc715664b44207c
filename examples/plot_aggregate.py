"""
================================
Where should new rows come from?
================================

The decoder has learned to decode the latent points of the training rows. A draw from the prior may fall where none of
them is, and then nobody has taught the decoder what to say.
"""

# %%
# What keeps draws from looking like rows
# ---------------------------------------
# The KL term has two parts: what a latent point says about which row it came from, and how far the latent points of all
# rows, taken together, are from the prior. The second is the gap. A prior that is learned closes a part of it, at the
# price of some parameters; both models are scored on held-out images.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from skvae import VAETransformer
from skvae.datasets import load_images
from skvae.metrics import frechet_distance, kl_split

X_train, _, X_test, _ = load_images("digits")
settings = {"max_iter": 40, "early_stopping": False, "random_state": 0}
priors = ["standard_normal", "vamp"]
models = {prior: VAETransformer(16, prior=prior, **settings).fit(X_train) for prior in priors}
print(f"{'prior':<16} held-out score  KL term  = says which row  + gap")
for prior, vae in models.items():
    kl, information, gap = kl_split(vae, X_train)
    print(f"{prior:<16} {vae.score(X_test):14.2f} {kl:8.2f} {information:17.2f} {gap:6.2f}   nats")

# %%
# Draws where the rows are
# ------------------------
# The other way leaves the model alone: `latents="aggregate"` draws from a Gaussian mixture that was fitted to the
# latent points of the training rows. How far are draws from as many held-out images? The Frechet distance compares
# means and covariances in a space that no model has a stake in, ten principal components. A higher score is no promise
# of a smaller distance: the score asks whether the held-out images are likely, the distance what draws look like.
reference = PCA(10, random_state=0).fit(X_test)
for prior, vae in models.items():
    for latents in ["prior", "aggregate"]:
        drawn = vae.sample(len(X_test), latents=latents, random_state=0)
        distance = frechet_distance(reference, X_test, drawn)
        print(f"{prior:<16} latents={latents!r:<12} distance {distance:.3f}")

# %%
# The same model, two sources
# ---------------------------
fig, axes = plt.subplots(1, 2, figsize=(8, 4.4), layout="constrained")
for ax, latents in zip(axes, ["prior", "aggregate"], strict=True):
    images = models["standard_normal"].sample(36, latents=latents, random_state=0).reshape(-1, 8, 8)
    tiles = np.pad(images, [(0, 0), (1, 1), (1, 1)], constant_values=0.5).reshape(6, 6, 10, 10)
    ax.imshow(tiles.swapaxes(1, 2).reshape(60, 60), cmap="gray_r")
    ax.set_title(f'latents="{latents}"')
    ax.axis("off")
plt.show()
