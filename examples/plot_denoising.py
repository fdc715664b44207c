"""
==============================================
Can it clean images, having seen no clean one?
==============================================

Encoding and decoding keeps what the latent features can express and drops the rest. Noise that is independent from
pixel to pixel is not among it: the model has a place for it, the noise scale of each pixel.
"""

# %%
# Through the latent space and back
# ---------------------------------
# `transform` and then `inverse_transform`, as with :class:`~sklearn.decomposition.PCA`. Both models are trained on
# noisy digits and see nothing else.
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

from skvae import VAETransformer
from skvae.datasets import load_images

clean_train, _, clean, _ = load_images("digits")
rng = np.random.default_rng(0)
train, noisy = (images + 0.5 * rng.normal(size=images.shape) for images in (clean_train, clean))

images = {"clean": clean, "noisy": noisy}
for model in [PCA(8), VAETransformer(8, max_iter=60, early_stopping=False, random_state=0)]:
    model.fit(train)
    images[type(model).__name__] = model.inverse_transform(model.transform(noisy))
for name, each in images.items():
    print(f"{name:<15} mean squared error {np.mean((each - clean) ** 2):.4f}")

# %%
# Eight held-out digits
# ---------------------
fig, axes = plt.subplots(4, 8, figsize=(8, 4.6), layout="constrained")
for line, (name, rows) in zip(axes, images.items(), strict=True):
    line[0].set_title(name, loc="left")
    for ax, row in zip(line, rows, strict=False):
        ax.imshow(row.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.axis("off")
plt.show()
