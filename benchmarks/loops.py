"""Ways to train the seeds' network, 784-128-(2 x 100)-128-784 with a Bernoulli likelihood, an epoch at a time.

Each class is made of images (n, 784) in [0, 1] and a batch size; `epoch()` trains for one epoch, and `log_prob(x, eps)`
of those that can be asked is the bound of each row. They differ in who wrote the loop, and in nothing else: He's normal
start, Adam with a learning rate of 1e-3, whole passes in random order.
"""

import math
import os
import tempfile

os.environ["TQDM_DISABLE"] = "1"  # pythae draws a bar for each epoch; read when tqdm is imported

import torch
from skorch import NeuralNet
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from skvae import VAETransformer, _net

HIDDEN, Z_DIM, LR = 128, 100, 1e-3


class PlainVAE(nn.Module):
    """The network as one would write it."""

    def __init__(self, n_features):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(n_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * Z_DIM))
        self.decoder = nn.Sequential(nn.Linear(Z_DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_features))
        for layer in (*self.encoder[::2], *self.decoder[::2]):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.in_features))
            nn.init.zeros_(layer.bias)

    def forward(self, x, eps=None):
        """Minus the bound on the log-likelihood of each row."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        eps = torch.randn_like(mean) if eps is None else eps
        logits = self.decoder(mean + (0.5 * log_var).exp() * eps)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1) + kl


class HandWritten:
    """The training loop that one would write by hand: batches indexed from the whole tensor, fused Adam."""

    name = "hand-written PyTorch"

    def __init__(self, x, batch_size):
        torch.manual_seed(0)
        self.x, self.batch_size = x, batch_size
        self.module = PlainVAE(x.shape[1])
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=LR, fused=True)

    def batches(self):
        return (self.x[rows] for rows in torch.randperm(len(self.x)).split(self.batch_size))

    def epoch(self):
        for x in self.batches():
            self.optimizer.zero_grad()
            self.module(x).mean().backward()
            self.optimizer.step()

    @torch.no_grad()
    def bound(self, x, eps):
        return -float(self.module(x, eps).mean())


class WithLoader(HandWritten):
    name = "hand-written, DataLoader"

    def batches(self):
        loader = DataLoader(TensorDataset(self.x), batch_size=self.batch_size, shuffle=True)
        return (batch[0] for batch in loader)


class MeanLoss(nn.Module):
    def forward(self, losses, _):
        return losses.mean()


class PlainSkorch:
    """skorch as its documentation has it."""

    name = "skorch, its own loader"

    def __init__(self, x, batch_size):
        torch.manual_seed(0)
        self.data = TensorDataset(x, torch.zeros(len(x)))
        options = {"batch_size": batch_size, "iterator_train__shuffle": True, "train_split": None, "verbose": 0}
        self.net = NeuralNet(
            PlainVAE,
            MeanLoss,
            module__n_features=x.shape[1],
            optimizer=torch.optim.Adam,
            lr=LR,
            max_epochs=1,
            **options,
        ).initialize()

    def epoch(self):
        self.net.partial_fit(self.data)


class Pythae:
    name = "pythae"

    def __init__(self, x, batch_size):
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig

        plain = PlainVAE(x.shape[1])

        class Encoder(BaseEncoder):
            def __init__(self):
                super().__init__()
                self.network = plain.encoder

            def forward(self, x):
                mean, log_var = self.network(x).chunk(2, dim=1)
                return ModelOutput(embedding=mean, log_covariance=log_var)

        class Decoder(BaseDecoder):
            def __init__(self):
                super().__init__()
                self.network = plain.decoder

            def forward(self, z):
                return ModelOutput(reconstruction=self.network(z).sigmoid())

        shape = {"input_dim": (x.shape[1],), "latent_dim": Z_DIM}
        model = VAE(VAEConfig(**shape, reconstruction_loss="bce"), Encoder(), Decoder())
        sizes = {"per_device_train_batch_size": batch_size, "per_device_eval_batch_size": batch_size}
        settings = BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(), num_epochs=1, learning_rate=LR, optimizer_cls="Adam", no_cuda=True, **sizes
        )
        self.trainer = BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=settings)
        self.trainer.prepare_training()

    def epoch(self):
        self.trainer.train_step(1)


class JAX:
    """A whole epoch compiled as one scan over batches."""

    name = "JAX, one scan"

    def __init__(self, x, batch_size):
        import jax
        from jax import numpy as jnp

        x, n_features = jnp.asarray(x.numpy()), x.shape[1]
        sizes = [(n_features, HIDDEN), (HIDDEN, 2 * Z_DIM), (Z_DIM, HIDDEN), (HIDDEN, n_features)]
        keys = jax.random.split(jax.random.PRNGKey(0), len(sizes))
        weights = [math.sqrt(2 / s[0]) * jax.random.normal(key, s) for key, s in zip(keys, sizes, strict=True)]
        params = [(weight, jnp.zeros(weight.shape[1])) for weight in weights]

        def affine(layer, x):
            return x @ layer[0] + layer[1]

        def losses(params, x, eps):
            mean, log_var = jnp.split(affine(params[1], jax.nn.relu(affine(params[0], x))), 2, axis=1)
            hidden = jax.nn.relu(affine(params[2], mean + jnp.exp(0.5 * log_var) * eps))
            logits = affine(params[3], hidden)
            kl = 0.5 * (mean**2 + jnp.exp(log_var) - 1 - log_var).sum(1)
            return (jax.nn.softplus(logits) - x * logits).sum(1) + kl

        def adam(p, g, m, v, t):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            return p - LR * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v

        def step(state, rows):
            params, m, v, t, key = state
            key, now = jax.random.split(key)
            eps = jax.random.normal(now, (len(rows), Z_DIM))
            grads = jax.grad(lambda p: losses(p, x[rows], eps).mean())(params)
            leaves, tree = zip(*map(jax.tree.flatten, (params, grads, m, v)), strict=True)
            new = zip(*(adam(*numbers, t + 1) for numbers in zip(*leaves, strict=True)), strict=True)
            params, m, v = (jax.tree.unflatten(tree[0], part) for part in new)
            return (params, m, v, t + 1, key), None

        @jax.jit
        def epoch(state):
            *rest, key = state
            key, now = jax.random.split(key)
            order = jax.random.permutation(now, len(x))[: len(x) // batch_size * batch_size]
            return jax.lax.scan(step, (*rest, key), order.reshape(-1, batch_size))[0]

        zeros = jax.tree.map(jnp.zeros_like, params)
        self.state = (params, zeros, zeros, jnp.float32(0), jax.random.PRNGKey(1))
        self._epoch, self._losses, self._wait = epoch, jax.jit(losses), jax.block_until_ready

    def epoch(self):
        self.state = self._wait(self._epoch(self.state))

    def bound(self, x, eps):
        return -float(self._losses(self.state[0], x.numpy(), eps.numpy()).mean())


class Ours:
    """`VAETransformer` with the parameters that make it the seeds': no linear paths, no averaging, plain Adam."""

    name = "VAETransformer"

    def __init__(self, x, batch_size):
        seeds = {"init": "random", "optimizer": "adam", "ema_decay": 0, "early_stopping": False}
        vae = VAETransformer(
            Z_DIM, likelihood="bernoulli", batch_size=batch_size, max_iter=1, device="cpu", random_state=0, **seeds
        )
        self.net = vae.fit(x[: 2 * batch_size].numpy()).net_
        self.x = x
        self.schedule = _net.Schedule(1, batch_size, 1, 0.0)

    def epoch(self):
        _net.train(self.net, self.x, self.schedule)


LOOPS = [HandWritten, WithLoader, PlainSkorch, Pythae, JAX, Ours]
