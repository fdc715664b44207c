"""
====================================
When do latent features fall silent?
====================================

A latent unit costs its KL divergence, in nats, and is kept only where it saves as much in reconstruction. A unit that
does not pay falls back to the prior: its posterior is the same for all rows. `ELBO(beta=...)` sets the price.
"""

# %%
# A sweep over the price
# ----------------------
# `kl_per_unit_` tells what each unit costs, `active_units_` which of them vary from row to row.
import matplotlib.pyplot as plt
import numpy as np

from skvae import VAETransformer
from skvae.datasets import load_images
from skvae.objectives import ELBO

X_train, _, X_test, _ = load_images("digits")
settings = {
    "likelihood": "bernoulli",
    "prior": "standard_normal",
    "max_iter": 30,
    "early_stopping": False,
    "random_state": 0,
}
betas = [0.25, 0.5, 1, 1.5, 2]
models = [VAETransformer(16, objective=ELBO(beta), **settings).fit(X_train) for beta in betas]
print("beta  active  total KL  score")
for beta, vae in zip(betas, models, strict=True):
    print(f"{beta:<4}  {vae.active_units_.sum():6d}  {vae.kl_per_unit_.sum():8.2f}  {vae.score(X_test):.2f}")

# %%
# The spectrum of the units
# -------------------------
# At `beta=1` the bound on the log-likelihood itself is trained, and the score is best near there. A smaller beta buys
# better reconstructions with a latent space that the prior no longer describes, a larger one a shorter code.
fig, ax = plt.subplots(figsize=(6.5, 4), layout="constrained")
for beta, vae, color in zip(betas, models, plt.cm.viridis(np.linspace(0, 0.9, len(betas))), strict=True):
    ax.plot(range(1, 17), np.sort(vae.kl_per_unit_)[::-1], "o-", color=color, label=f"beta={beta}")
ax.set(xlabel="latent unit, sorted", ylabel="KL (nats)")
ax.legend()
plt.show()
