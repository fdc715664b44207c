"""A variational autoencoder of handwritten digits, trained as the VAE tutorials do.

One hidden layer of 128 units on either side, Bernoulli decoder, Adam, batches of 64. While it trains it prints the
loss and writes grids of images to `out/`; then it does what an estimator can do besides: it scores held-out images
and lets a grid search choose the latent dimension that serves a classifier best, beside PCA.

    python examples/mnist.py                                  # the digits that scikit-learn bundles
    python examples/mnist.py --data mnist --iterations 20000  # MNIST, downloaded
"""

import argparse
import math

from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback

from skvae import VAETransformer
from skvae.callbacks import SampleGrid
from skvae.datasets import load_images

SEARCH_ROWS = 2000  # of the training data; enough to compare latent dimensions
Z_DIMS = [2, 5, 10, 20]


class StopAfter(Callback):
    """End training after so many iterations, in the middle of an epoch if need be."""

    def __init__(self, n_iterations):
        self.n_iterations = n_iterations

    def on_train_begin(self, net, **kwargs):
        self.left_ = self.n_iterations

    def on_batch_end(self, net, training=False, **kwargs):
        self.left_ -= training
        if self.left_ == 0:
            raise KeyboardInterrupt


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", metavar="digits|mnist|FILE.npz", help="default: digits")
    parser.add_argument("--iterations", type=int, default=5000, help="training steps (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1000, help="steps between two reports (default: %(default)s)")
    parser.add_argument("--z-dim", type=int, default=100, help="latent dimensions (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows per step (default: %(default)s)")
    parser.add_argument("--out", default="out", help="folder for the grids of images (default: %(default)s)")
    parser.add_argument("--grid", choices=["prior", "reconstruction", "both"], default="prior", help="what they show")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    return parser.parse_args()


def searched(reducer, name, X, y):
    """A grid search over the number of dimensions that a classifier gets."""
    pipeline = Pipeline([("reducer", reducer), ("clf", LogisticRegression(max_iter=1000))])
    return GridSearchCV(pipeline, {f"reducer__{name}": Z_DIMS}, cv=3).fit(X, y)


def main():
    args = parse_args()
    X_train, y_train, X_test, y_test = load_images(args.data)
    print(f"{args.data}: {len(X_train)} images to train on, {len(X_test)} held out, {X_train.shape[1]} pixels")

    vae = VAETransformer(
        z_dim=args.z_dim,
        hidden_layer_sizes=(128,),
        likelihood="bernoulli",
        prior="standard_normal",
        init="random",
        optimizer="adam",
        learning_rate=1e-3,
        batch_size=args.batch_size,
        max_iter=math.ceil(args.iterations / math.ceil(len(X_train) / args.batch_size)),
        early_stopping=False,
        random_state=args.seed,
    )
    grid = SampleGrid(args.out, every=args.every, grid=args.grid, seed=args.seed)
    vae.set_params(callbacks=[grid, StopAfter(args.iterations)]).fit(X_train)
    print(f"images in {args.out}/")
    print(f"held-out log-likelihood: {vae.score(X_test):.2f} nats per image")

    some = X_train[:SEARCH_ROWS], y_train[:SEARCH_ROWS]
    print(f"\ngrid search over z_dim, logistic regression behind it, {len(some[0])} images:")
    search = searched(VAETransformer(random_state=args.seed), "z_dim", *some)
    ours, others = (one.cv_results_["mean_test_score"] for one in (search, searched(PCA(), "n_components", *some)))
    for z_dim, accuracy, pca in zip(Z_DIMS, ours, others, strict=True):
        print(
            f"  z_dim {z_dim:2d}: accuracy {accuracy:.3f}, {'below' if accuracy < pca else 'at least'} PCA's {pca:.3f}"
        )
    print(f"held-out accuracy at z_dim {search.best_params_['reducer__z_dim']}: {search.score(X_test, y_test):.3f}")


if __name__ == "__main__":
    main()
