"""
=============================================
How many latent features does the table need?
=============================================

:class:`~sklearn.model_selection.GridSearchCV` maximises `score`, the held-out log-likelihood, when it is given no
`scoring`: the number of latent features can be chosen without a label and without a task.
"""

# %%
# A search over `z_dim`
# ---------------------
# 178 wines, 13 measurements. With 3 folds, each model is scored on rows that it has not seen.
import matplotlib.pyplot as plt
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, KFold

from skvae import VAETransformer
from skvae.displays import CollapseDisplay

X = load_wine().data
vae = VAETransformer(max_iter=40, early_stopping=False, random_state=0)
folds = KFold(3, shuffle=True, random_state=0)  # the rows are sorted by cultivar
search = GridSearchCV(vae, {"z_dim": [1, 2, 4, 8, 16, 24]}, cv=folds).fit(X)
results = search.cv_results_
for z_dim, score, spread in zip(
    results["param_z_dim"], results["mean_test_score"], results["std_test_score"], strict=True
):
    print(f"z_dim {z_dim:2d}: {score:7.2f} nats per row, +- {spread:.2f} between folds")
print("best:", search.best_params_)

# %%
# What the best model uses
# ------------------------
# On the left, the score has a flat top: beyond the best value, more latent features change little. On the right, the
# reason: a unit that is not worth its cost falls silent, that is, its KL divergence goes to zero nats. To give a few
# units too many is the smaller mistake.
wide = VAETransformer(24, max_iter=40, early_stopping=False, random_state=0).fit(X)

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.errorbar(results["param_z_dim"], results["mean_test_score"], yerr=results["std_test_score"], fmt="o-", capsize=3)
left.set(xlabel="z_dim", ylabel="cross-validated score (nats per row)")
CollapseDisplay.from_estimator(wide, ax=right)
right.set_title("units of the model with z_dim=24")
plt.show()
