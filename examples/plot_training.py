"""
===========================================
How does training go, and when does it end?
===========================================

The estimator keeps its learning curves, prints a few lines with `verbose=1`, and takes callbacks of skorch, which can
change the learning rate, keep checkpoints, write logs or end training.
"""

# %%
# A line now and then
# -------------------
# Rows are held out, the learning rate falls when they no longer gain, and the state that served them best is kept.
import matplotlib.pyplot as plt
from skorch.callbacks import EarlyStopping, LRScheduler
from torch.optim.lr_scheduler import OneCycleLR

from skvae import VAETransformer
from skvae.datasets import load_images
from skvae.displays import LearningCurveDisplay

X_train, _, X_test, _ = load_images("digits")
vae = VAETransformer(8, likelihood="bernoulli", max_iter=80, early_stopping=True, random_state=0, verbose=1)
vae.fit(X_train)

# %%
# The curves
# ----------
# `loss_curve_` is the negative evidence lower bound: the reconstruction term plus `kl_curve_`. `validation_scores_`
# is the bound on held-out rows, drawn with its sign turned so that it compares with the loss. It is taken with weights
# averaged over the last steps, which is why it can be below the loss.
LearningCurveDisplay.from_estimator(vae)
plt.show()

# %%
# With callbacks
# --------------
# A schedule of torch for the learning rate, and an end as soon as five epochs bring nothing. Copies of the callbacks
# are used: the objects in the list stay as they are, and serve the next fit too.
callbacks = [
    LRScheduler(OneCycleLR, max_lr=4e-3, total_steps=31),
    EarlyStopping(monitor="train_loss", patience=5, sink=lambda message: None),
]
one_cycle = VAETransformer(
    8, likelihood="bernoulli", max_iter=30, early_stopping=False, callbacks=callbacks, random_state=0
).fit(X_train)
print(f"held out + falling rate: {vae.n_iter_} epochs, {vae.score(X_test):.2f} nats per row")
print(f"one cycle:               {one_cycle.n_iter_} epochs, {one_cycle.score(X_test):.2f} nats per row")
