"""The watch over training: it judges states, keeps the good ones, owns the learning rate and says when to stop."""

import copy
import dis
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from .._data.batch import Batch
from .._data.split import Rows, Split, TrainBatches, member, padded
from .._fast.gradient import FastELBO
from .._model.module import VAE
from .._system.random import VALIDATION_STREAM, generator, subsample
from .schedule import Schedule

if TYPE_CHECKING:
    from .net import Net

MAP_DIM = 2  # up to which the latent space is a map of the rows
_PLACING = 4  # the rows of a map that are few find their places in this part of the steps
_LITTLE = 0.01  # nats per row; the rows that were held out would tell as much
_GENTLE = 0.01  # of the learning rate, from a start that nothing has bettered
WARMUP = 50  # steps over which the learning rate rises
_USUAL_ROWS = 32  # of a batch; a smaller one takes a shorter step
_USUAL_FEATURES = 2000  # at most; a step on more moves each sum over them further
_LEAST_STEPS, _LOOKS = 30, 5  # between two looks, of which there are at most so many in a patience
_FRACTION = 4  # trained rows for each judged one: a look takes a tenth of the time of the steps before it, at most
_VALIDATION_ROWS = 256  # fewer held-out rows are repeated, with other noise, up to about this many
_MAX_JUDGED, _LEAST_JUDGED, _JUDGED_VALUES = 25_000, 1_000, 2**23  # rows say enough; more are judged less often
_BLOCK, _BLOCK_VALUES = 2048, 2**21
_CHECKED_ROWS = 2048


class StopTraining(Exception):
    """The wish of a callback, or of the guard, to end training; skorch knows KeyboardInterrupt only."""


class Diverged(ArithmeticError):
    """A loss that is not finite."""


def is_raised(error: BaseException) -> bool:
    """Tell whether a statement raised `error`, as callbacks do to end training: a Ctrl-C arrives between statements."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_code.co_code[place.tb_lasti] == dis.opmap["RAISE_VARARGS"]


class Judge:
    """Scores the last members of a stack by the rows of the `split` that they have not seen.

    A row's value is the objective's, with the bound in it replaced by that of the mixture with the linear background,
    which is what `score_samples` returns.
    """

    def __init__(self, net: "Net", split: Split) -> None:
        self.net, self.split, self.n_judged = net, split, len(split.valid)
        n_features = split.x.shape[1]
        most = min(_MAX_JUDGED, max(_LEAST_JUDGED, _JUDGED_VALUES // n_features))
        valid = [rows[torch.from_numpy(subsample(len(rows), most, net.seed))] for rows in split.valid]
        self.modules = net.stack_.averages[-self.n_judged :]
        n_repeats = min(16, -(-_VALIDATION_ROWS // max(map(len, valid))))
        indices, weight = padded([rows.repeat(n_repeats) for rows in valid])
        rng, n_draws = generator(net.seed, VALIDATION_STREAM), net.criterion_.n_draws
        shape = (*indices.shape, net.z_dim) if n_draws == 1 else (n_draws, *indices.shape, net.z_dim)
        eps = torch.randn(shape, generator=rng).to(net.device)
        self.n_rows = indices.shape[1]
        own, at = split.own(indices)
        fields = Rows(split.x, net.module_).take(own, rng) | {"eps": eps[..., at, :]}
        self.weight = weight[:, at].to(net.device)
        size = max(1, min(_BLOCK, _BLOCK_VALUES // n_features) // (n_draws * self.n_judged))
        cuts = [slice(start, start + size) for start in range(0, max(1, own.shape[1]), size)]
        self.parts = [Batch(**{name: part[..., cut, :] for name, part in fields.items()}) for cut in cuts]
        self.background = self._background()
        self.fast = FastELBO(net.stack_, net.fast_.beta, self.n_judged) if net.fast_ else None

    @torch.no_grad()
    def _background(self) -> list[Tensor] | None:
        """Log-densities of the rows of each part under the linear model, which does not change."""
        if self.modules[0].background is None:
            return None
        return [torch.stack([module.background_of(some) for module, some in self._shares(part)]) for part in self.parts]

    def _shares(self, part: Batch) -> list[tuple[VAE, Batch]]:
        """The members with their rows of a part."""
        return [(module, member(part, i)) for i, module in enumerate(self.modules)]

    @torch.no_grad()
    def __call__(self) -> tuple[float, float, float]:
        """Mean score, bound of the mixture and KL over the rows and members, in nats per row."""
        self.net.stack_.take_buffers()
        terms = [torch.stack(self._terms(part)) for part in self.parts]  # (3, n_judged, batch)
        values, log_prob, kl = torch.cat(terms, -1)
        bound = log_prob - kl
        if self.background is not None:
            mixed = self.modules[0].mixture(bound, torch.cat(self.background, -1))
            values, bound = values + (mixed - bound), mixed
        means = torch.stack([(rows * self.weight).sum() for rows in (values, bound, kl)]) / self.n_judged
        return tuple(self.split.total(means).tolist())

    def _terms(self, part: Batch) -> tuple[Tensor, ...]:
        if self.fast:
            log_prob, kl = self.fast.terms(part)
            return log_prob - self.fast.beta * kl, log_prob, kl
        found = []
        for module, some in self._shares(part):
            with self.net.inference(module):
                found.append(torch.stack(self.net.criterion_(module, some)))
        return tuple(torch.stack(found, 1))


class Guard:
    """Keeps the state with the best score, the start included, and stops when none better comes.

    Where the linear model says nothing of the rows, its start is a saddle: it is judged and kept as any other, and
    training begins from the split's `awake` start in its place, without noise on the encoder's inputs.

    When the score has not risen by `tol` for more than `patience` steps, or half of the steps are done, the first
    phase ends, unless the objective still warms up or the rows of a map find their places. Networks that wake up late
    are worse than the linear start at first: while nothing is better than that, there are twice as many steps from
    the last look that was better than the one before it. When the phase ends, training goes back to the
    best state and on from there without noise on the encoder's inputs, with the gradient of the bound as it is but for
    a map, while the learning rate falls linearly to zero, within as many steps as the first phase had: from a hundredth
    of it if nothing was better than the start, as where columns are sums of others and any usual step is too long.
    Training ends with these steps, or where the score again does not rise. Warm-up and the steps between looks go by
    the schedule's `pace`. Where nothing is judged, the learning rate stays, the last state that a finite loss has
    confirmed is kept, and training ends with its last one.

    An epoch whose loss is not finite is undone: training goes back to the state that is kept, with a new optimizer. The
    learning rate is halved the first time, quartered the second, and so on, and stays there.
    """

    n_tries = 5  # how often an epoch is undone before training is given up

    def __init__(self, net: "Net", split: Split, schedule: Schedule) -> None:
        self.net, self.split, self.schedule = net, split, schedule
        self.budget = schedule.n_epochs * len(TrainBatches(net, split))  # steps
        self.warmup = max(1, round(schedule.pace * WARMUP))
        self.judge = Judge(net, split) if split.valid else None
        judged = self.judge.n_rows * self.judge.n_judged if self.judge else 0
        trained = net.batch_size * len(split.train)
        least = max(schedule.pace * _LEAST_STEPS, schedule.patience / _LOOKS)
        self.every = max(1, round(least), -(-_FRACTION * judged // trained))
        self.end = 0  # the epoch after which training ends
        self.n_before, self.n_step_rows = net.n_steps_, 0
        self.narrowness = min(1.0, _USUAL_FEATURES / split.x.shape[1])
        self.n_steps = self.progress = self.n_undone = 0
        self.turn = self.last = math.inf  # steps after which the second phase begins, and ends
        self.second = 1.0  # factor of the learning rate in that phase
        self.before: dict[str, float] = {}  # this epoch, which may be undone
        self.seen: tuple[float, float, float] | None = None  # the last look
        self.best = self.former = self.first = -math.inf
        self.states: list[list[Tensor]] = []  # the best; or the first, the last that is confirmed and the latest one

    @property
    def n_all_steps(self) -> int:
        """Number of steps that the net has been trained for, with those of calls before."""
        return self.n_before + self.n_steps

    @property
    def lr_factor(self) -> float:
        """The factor of the learning rate for the next step: one on few rows has a noisy gradient, and one on many
        features goes far."""
        warmth = min(1.0, (self.n_all_steps + 1) / self.warmup)
        left = 1.0 if self.in_first_phase else self.second * (self.last - self.n_steps) / (self.last - self.turn)
        return left * warmth * self.narrowness * min(1.0, self.n_step_rows / _USUAL_ROWS)

    @property
    def in_first_phase(self) -> bool:
        return self.turn == math.inf

    @property
    def is_placing(self) -> bool:
        """True while the rows of a map that are too few to be balanced find their places: in the first quarter."""
        is_map = self.net.z_dim <= MAP_DIM and self.net.module_.likelihood.n_raw > 1 and not self.net.balanced
        return is_map and self.in_first_phase and _PLACING * self.n_steps < self.budget

    @property
    def is_settling(self) -> bool:
        """True while no phase may end: the objective warms up, or the rows of a map find their places."""
        return self.net.criterion_.warming or self.is_placing

    @property
    def is_asleep(self) -> bool:
        """True in the first phase while no look is better than the first one."""
        return self.in_first_phase and self.best <= self.first + self.schedule.tol

    def state(self) -> dict:
        """Return what a checkpoint keeps."""
        left_out = ("net", "split", "schedule", "judge", "end")
        return {key: value for key, value in vars(self).items() if key not in left_out}

    def load(self, state: dict) -> None:
        vars(self).update(state)

    def on_epoch_begin(self) -> None:
        self.before = {name: getattr(self, name) for name in ("n_steps", "progress", "turn", "last")}
        if self.judge and self.seen is None:
            self._look()
            if self.split.awake:
                self.net.stack_.begin_from(self.split.awake())
        if not self.judge:  # a finite loss of the epoch before does not confirm the state after its last step
            self.states = [*self.states[:1], *self.states[-1:], self.net.stack_.state()]

    def on_epoch_end(self) -> None:
        if self.judge and len(self.net.history) == self.end and self.n_steps % self.every:
            self._look()

    def on_step_end(self) -> None:
        self.n_steps += 1
        if not self.judge:
            return
        is_last = self.n_steps == self.last < self.budget  # which ends by itself, with an epoch
        turns = self.in_first_phase and 2 * self.n_steps >= self.budget and not self.is_settling
        if not (is_last or turns or self.n_steps % self.every == 0):
            return
        self._look()
        patience = max(self.schedule.patience, self.every) * (2 if self.is_asleep else 1)
        is_stale = self.n_steps - self.progress > patience and not self.is_settling
        if is_last or turns or is_stale:
            self._end_phase()

    def _look(self) -> None:
        assert self.judge
        first, self.seen = self.seen is None, self.judge()
        score = self.seen[0]
        if not math.isfinite(score):
            if not first:
                raise Diverged(f"the validation loss of epoch {len(self.net.history)} is {-score}")
            score = -math.inf
        self.first = score if first else self.first
        least = min(self.best, self.former) if self.is_asleep else self.best
        if score > least + self.schedule.tol or self.is_settling:
            self.progress = self.n_steps
        if first or score > self.best:
            self.best, self.states = score, [self.net.stack_.state()]
        self.former = score

    def _end_phase(self) -> None:
        if not self.in_first_phase:
            raise StopTraining
        self.turn = self.progress = self.n_steps
        self.second = _GENTLE if self.best == self.first else 1.0
        self.last = self.turn + max(1, min(self.turn, self.budget - self.turn))
        self.net.stack_.load(self.states[0])
        for state in self.net.optimizer_.state.values():
            if "exp_avg" in state:
                state["exp_avg"].zero_()

    def undo(self, error: Exception) -> None:
        """Take back the epoch in which `error` occurred, or raise ValueError if it was the last try."""
        self.net.history.pop()
        vars(self).update(self.before)
        self.states[-1] = self.states[-2:][0]  # in the first epoch there is one state only
        self._go_back(str(error))
        if self.n_undone > self.n_tries:
            raise ValueError(
                f"Training diverged: {error}, at a learning rate of {2**self.n_undone * self.net.lr:.1e} still. Lower "
                "`learning_rate`, or look for outliers in X and scale or clip them."
            )

    def _go_back(self, reason: str) -> None:
        """Go on from the latest state, at a lower learning rate."""
        self.n_undone += 1
        factor = 0.5**self.n_undone
        self.net.stack_.load(self.states[-1])
        self.net.lr *= factor
        self.net.optimizer_.state.clear()
        for group in self.net.optimizer_.param_groups:
            for name in group.keys() & {"lr", "initial_lr", "min_lr", "max_lr"}:
                group[name] *= factor
        for _, callback in self.net.callbacks_:  # some schedules begin anew from these at each step
            if base_lrs := getattr(getattr(callback, "lr_scheduler_", None), "base_lrs", None):
                callback.lr_scheduler_.base_lrs = [factor * rate for rate in base_lrs]
        if self.n_undone <= self.n_tries:
            warnings.warn(
                f"Training diverged: {reason}. It goes back to the last good state, with the learning rate lowered to "
                f"{self.net.lr:.1e}.",
                ConvergenceWarning,
                stacklevel=2,
            )

    def finish(self) -> None:
        """Leave the best state, or the last one that is finite, with the linear model of all rows."""
        if self.judge and self.states:
            self.net.stack_.load(self.states[0])
            if self.split.of_all:
                self._take_over(self.split.of_all())
        elif self.states and not self.is_finite():
            self._go_back(f"the loss after epoch {len(self.net.history)} is not finite")
            for state in self.states[-2::-1]:  # each row was evaluated at one state only
                if not self.is_finite():
                    self.net.stack_.load(state)

    def _take_over(self, models: list[VAE]) -> None:
        """Take the linear start of all rows where nothing is much better than that of some, and else its background."""
        if self.best <= self.first + _LITTLE:
            self.net.stack_.begin_from(models)
        elif background := models[0].background_state():
            for module in (self.net.stack_.members[0], self.net.stack_.averages[0]):
                module.load_state_dict(background, strict=False)

    def is_finite(self) -> bool:
        """Tell whether the last step left finite terms of the bound, on some rows."""
        x, _ = self.split[torch.from_numpy(subsample(len(self.split), _CHECKED_ROWS, self.net.seed))]
        n_others = sum(int((~term.isfinite()).sum()) for terms in self.net.forward_iter(x) for term in terms)
        return not bool(self.split.total(x.new_tensor(float(n_others))))


@contextmanager
def unchanged_if_refused(net: "Net | None") -> Iterator[None]:
    """Within this context an error leaves a net that is trained on, if there is one, as it was; a Ctrl-C is none."""
    if net is None:
        yield
        return
    own, recipe, history, frozen = vars(net).copy(), net.recipe_.copy(), list(net.history), net.frozen
    parts: list[Any] = [net.module_, net.average_, net.criterion_, net.optimizer_]
    states = [copy.deepcopy(part.state_dict()) for part in parts]
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        net.__dict__.clear()
        net.__dict__.update(own, recipe_=recipe)
        net.history[:] = history
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
        net.freeze(frozen)
        raise
