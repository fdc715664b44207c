"""
==================================
Which likelihood fits grey values?
==================================

Grey values in [0, 1] can be taken for real numbers with Gaussian noise, for values of a density on the unit interval,
or for the probabilities of ink. The first two are densities of the same rows, so their scores compare: the data choose.
"""

# %%
# Scores that compare, and one that does not
# ------------------------------------------
# `"bernoulli"` on grey values is a cross-entropy that belongs to no density. Its score lives on another scale: never
# rank it against the others. Images from it may still be the best to look at.
import matplotlib.pyplot as plt

from skvae import VAETransformer
from skvae.datasets import load_images
from skvae.likelihoods import Gaussian

X_train, _, X_test, _ = load_images("digits")
likelihoods = {
    "gaussian": "gaussian",
    "gaussian, one noise": Gaussian(noise="shared"),
    "continuous_bernoulli": "continuous_bernoulli",
    "bernoulli": "bernoulli",
}
models = {
    name: VAETransformer(8, likelihood=likelihood, max_iter=40, early_stopping=False, random_state=0).fit(X_train)
    for name, likelihood in likelihoods.items()
}
for name, vae in models.items():
    remark = "(no density)" if name == "bernoulli" else ""
    print(f"{name:<21} {vae.score(X_test):8.2f} nats per row {remark}")

# %%
# The same rows from each model
# -----------------------------
# Means of p(x | z) for the posterior means of eight held-out digits.
fig, axes = plt.subplots(len(models) + 1, 8, figsize=(8, 5.6), layout="constrained")
means = {name: vae.inverse_transform(vae.transform(X_test[:8])) for name, vae in models.items()}
for line, (name, images) in zip(axes, ({"held-out digits": X_test[:8]} | means).items(), strict=True):
    line[0].set_title(name, loc="left")
    for ax, image in zip(line, images, strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
        ax.axis("off")
plt.show()
