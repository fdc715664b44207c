"""A variational autoencoder of handwritten digits, trained as the VAE tutorials do.

One hidden layer of 128 units on either side, Bernoulli decoder, Adam, batches of 64. While it trains it prints the
loss and writes grids of images to `out/`; then it does what an estimator can do besides: it scores held-out images
and lets a grid search choose the latent dimension that serves a classifier best.

    python examples/mnist.py                                  # the digits that scikit-learn bundles
    python examples/mnist.py --data mnist --iterations 20000  # MNIST, downloaded
"""

import argparse
import math

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback

from skvae import VAETransformer
from skvae.callbacks import SampleGrid
from skvae.datasets import load_images

SEARCH_ROWS = 2000  # of the training data; enough to compare latent dimensions


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
        ema_decay=0,
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

    short = VAETransformer(likelihood="bernoulli", max_iter=30, early_stopping=False, random_state=args.seed)
    pipeline = Pipeline([("vae", short), ("clf", LogisticRegression(max_iter=1000))])
    search = GridSearchCV(pipeline, {"vae__z_dim": [2, 5, 10, 20]}, cv=3)
    search.fit(X_train[:SEARCH_ROWS], y_train[:SEARCH_ROWS])
    print(f"\ngrid search over z_dim, a classifier behind it, {min(SEARCH_ROWS, len(X_train))} images:")
    results = search.cv_results_
    for z_dim, accuracy in zip(results["param_vae__z_dim"], results["mean_test_score"], strict=True):
        print(f"  z_dim {z_dim:2d}: accuracy {accuracy:.3f}")
    print(f"held-out accuracy at z_dim {search.best_params_['vae__z_dim']}: {search.score(X_test, y_test):.3f}")


if __name__ == "__main__":
    main()
