"""Ways to train a network 784-128-100-128-784 with a Bernoulli likelihood for an epoch.

Each class is made of images (n, 784) in [0, 1] and a batch size, some of a device too; `epoch()` trains for one epoch,
and `bound(x, eps)` is the mean bound on the log-likelihood of images at given noise, in nats. They differ in who wrote
the loop, and in nothing else: He's normal start, Adam with a learning rate of 1e-3, whole passes in random order. What
a device has been told to do need not be done when `epoch` returns: who takes the time waits for it, once.
"""

import math
import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"  # where the others are measured; read when JAX is imported

import torch
from skorch import NeuralNet
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from skvae import VAETransformer
from skvae._data.batch import Batch
from skvae._data.split import whole
from skvae._training import net as _net
from skvae._training import schedule as _schedule

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


class Loop:
    """Trains its `module`, a `PlainVAE`, with what its `package` has."""

    package = "torch"

    @torch.no_grad()
    def bound(self, x, eps):
        device = self.module.decoder[0].weight.device
        return -float(self.module(x.to(device), eps.to(device)).mean())


class HandWritten(Loop):
    """The training loop that one would write by hand: batches indexed from the whole tensor, fused Adam."""

    name = "hand-written PyTorch"
    capturable = False  # whether the optimizer's step can be

    def __init__(self, x, batch_size, device="cpu"):
        torch.manual_seed(0)
        self.x, self.batch_size = x.to(device), batch_size
        self.module = PlainVAE(x.shape[1]).to(device)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=LR, fused=True, capturable=self.capturable)

    def batches(self):
        order = torch.randperm(len(self.x), device=self.x.device)
        return (self.x[rows] for rows in order.split(self.batch_size))

    def step(self, x, eps=None):
        self.optimizer.zero_grad()
        self.module(x, eps).mean().backward()
        self.optimizer.step()

    def epoch(self):
        for x in self.batches():
            self.step(x)


class CUDAGraph(HandWritten):
    """The same with the step captured once and replayed for each batch: one launch in the place of dozens.

    A captured step reads and writes the same memory each time, and draws nothing: row numbers and noise are drawn
    outside, for a whole epoch, and come through `rows` and `eps`. All batches have the same size, so the rows of a
    short last one are left out, as JAX's loop leaves them. Without a GPU the step is not captured, only called.
    """

    name = "hand-written, CUDA graph"
    capturable = True

    def __init__(self, x, batch_size, device="cpu"):
        super().__init__(x, batch_size, device)
        self.rows = torch.arange(batch_size, device=device)
        self.eps = torch.randn(batch_size, Z_DIM, device=device)
        self.replay = self.captured().replay if self.x.is_cuda else self.whole_step

    def whole_step(self):
        self.step(self.x.index_select(0, self.rows), self.eps)

    def captured(self):
        """As torch's notes on whole-network capture have it: some steps on another stream first, and no gradients."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.whole_step()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()  # the captured step then makes gradients in the graph's own memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.whole_step()
        return graph

    def epoch(self):
        device, n_steps = self.x.device, len(self.x) // self.batch_size
        order = torch.randperm(len(self.x), device=device)
        noise = torch.randn(n_steps, self.batch_size, Z_DIM, device=device)
        for rows, eps in zip(order.split(self.batch_size)[:n_steps], noise, strict=True):
            self.rows.copy_(rows)
            self.eps.copy_(eps)
            self.replay()


class Products:
    """The matrix products of an epoch, forward and backward, and nothing else: it trains nothing."""

    name = "matrix products"
    package = "torch"

    def __init__(self, x, batch_size, device="cpu"):
        self.x, self.batch_size = x.to(device), batch_size
        network = PlainVAE(x.shape[1])
        self.weights = [layer.weight.detach().to(device) for layer in (*network.encoder[::2], *network.decoder[::2])]
        self.inputs = [torch.randn(batch_size, weight.shape[1], device=device) for weight in self.weights[1:]]
        self.grads = [torch.randn(batch_size, weight.shape[0], device=device) for weight in self.weights]

    @torch.no_grad()
    def epoch(self):
        for x in self.x.split(self.batch_size):
            self.step(x)

    def step(self, x):
        """Of each layer the output, the weight's gradient and, where there is a layer before it, the input's."""
        inputs, grads = ([block[: len(x)] for block in blocks] for blocks in (self.inputs, self.grads))
        for weight, layer_input, grad in zip(self.weights, [x, *inputs], grads, strict=True):
            torch.mm(layer_input, weight.t())
            torch.mm(grad.t(), layer_input)
            if layer_input is not x:
                torch.mm(grad, weight)


class WithLoader(HandWritten):
    name = "hand-written, DataLoader"

    def batches(self):
        loader = DataLoader(TensorDataset(self.x), batch_size=self.batch_size, shuffle=True)
        return (batch[0] for batch in loader)


class MeanLoss(nn.Module):
    def forward(self, losses, _):
        return losses.mean()


class PlainSkorch(Loop):
    """skorch as its documentation has it."""

    name = "skorch, its own loader"
    package = "skorch"

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

    @property
    def module(self):
        return self.net.module_

    def epoch(self):
        self.net.partial_fit(self.data)


class Pythae(Loop):
    """pythae's trainer; its model is made of the parts of `module`."""

    name = "pythae"
    package = "pythae.trainers"

    def __init__(self, x, batch_size):
        from pythae.data.datasets import BaseDataset
        from pythae.models import VAE, VAEConfig
        from pythae.models.base.base_utils import ModelOutput
        from pythae.models.nn import BaseDecoder, BaseEncoder
        from pythae.trainers import BaseTrainer, BaseTrainerConfig

        torch.manual_seed(0)
        self.module = plain = PlainVAE(x.shape[1])

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
        self.folder = tempfile.TemporaryDirectory()  # is deleted with the loop
        settings = BaseTrainerConfig(
            output_dir=self.folder.name, num_epochs=1, learning_rate=LR, optimizer_cls="Adam", no_cuda=True, **sizes
        )
        self.trainer = BaseTrainer(model, BaseDataset(x, torch.zeros(len(x))), training_config=settings)
        self.trainer.prepare_training()
        self.trainer.callback_handler.callbacks.clear()  # a progress bar, and what prints losses

    def epoch(self):
        self.trainer.train_step(1)


class JAX:
    """A whole epoch compiled as one scan over batches; it returns the batches' losses, as the others compute theirs."""

    name = "JAX, one scan"
    package = "jax"
    returns_losses = True

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
            loss, grads = jax.value_and_grad(lambda p: losses(p, x[rows], eps).mean())(params)
            leaves, tree = zip(*map(jax.tree.flatten, (params, grads, m, v)), strict=True)
            new = zip(*(adam(*numbers, t + 1) for numbers in zip(*leaves, strict=True)), strict=True)
            params, m, v = (jax.tree.unflatten(tree[0], part) for part in new)
            return (params, m, v, t + 1, key), loss if self.returns_losses else None

        @jax.jit
        def epoch(state):
            *rest, key = state
            key, now = jax.random.split(key)
            order = jax.random.permutation(now, len(x))[: len(x) // batch_size * batch_size]
            return jax.lax.scan(step, (*rest, key), order.reshape(-1, batch_size))

        zeros = jax.tree.map(jnp.zeros_like, params)
        self.state = (params, zeros, zeros, jnp.float32(0), jax.random.PRNGKey(1))
        self._epoch, self._losses, self._wait = epoch, jax.jit(losses), jax.block_until_ready

    def epoch(self):
        self.state, self.losses = self._wait(self._epoch(self.state))

    def bound(self, x, eps):
        return -float(self._losses(self.state[0], x.numpy(), eps.numpy()).mean())


class JAXWithoutLosses(JAX):
    """The same, but nobody learns how training goes: the compiler then leaves the likelihood's value out."""

    name = "JAX, one scan, no losses"
    returns_losses = False


@torch.no_grad()
def bound_of_net(net, x, eps):
    log_prob, kl = net.average_(Batch(x.to(net.device), eps.to(net.device)))
    return float((log_prob - kl).mean())


class Ours:
    """`VAETransformer` with the parameters that make it the same network, without linear paths; it averages on top."""

    name = "VAETransformer"
    package = "skvae"
    init, n_start = "random", 1024  # rows that the start is found on

    def __init__(self, x, batch_size, device="cpu"):
        plain = {"optimizer": "adam", "learning_rate": LR, "early_stopping": False}
        params = plain | {"init": self.init, "batch_size": batch_size, "max_iter": 1, "device": device}
        model = {"hidden_layer_sizes": (128,), "likelihood": "bernoulli", "prior": "standard_normal"}
        vae = VAETransformer(Z_DIM, **model, random_state=0, **params)
        self.net = vae.fit(x[: self.n_start].numpy()).net_
        self.split = whole(x.to(device))
        self.schedule = _schedule.Schedule(1, batch_size, 1, 0.0)

    def epoch(self):
        _net.train(self.net, self.split, self.schedule)

    def bound(self, x, eps):
        return bound_of_net(self.net, x, eps)


class OursWithPaths(Ours):
    """The same with the linear paths of every default fit, and at their start."""

    name = "VAETransformer, linear paths"
    init, n_start = "linear", 10_000


PEERS = [HandWritten, WithLoader, PlainSkorch, Pythae, JAX]
LOOPS = [*PEERS, JAXWithoutLosses, Ours, OursWithPaths]
LOOPS_ON_GPU = [HandWritten, CUDAGraph, Ours, OursWithPaths, Products]
