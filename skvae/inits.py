"""Where training starts; INITS names the choices."""

from numbers import Real
from typing import ClassVar

from sklearn.utils._param_validation import Interval, StrOptions

from ._model.component import Component

__all__ = ["LinearInit", "RandomInit"]


class Init(Component):
    """Base of the ways to start.

    Attributes
    ----------
    weight_decay : float or "auto"
        Shrinkage of the networks' weights, times the number of rows.
    """

    weight_decay: float | str = 0.0


class LinearInit(Init):
    """Start at the optimum of the linear model, in closed form, with linear paths beside the two networks.

    The networks start at zero output. The paths stay, and so does the linear model, as a small part of the density.

    Where columns tell less than a quarter of a nat of each other in the linear model, that is a saddle, from which
    networks do not find what else there may be. Training that is judged by held-out rows then begins where each unit
    stands for nine tenths of the variance of one column, and keeps the linear model if nothing better comes.

    Parameters
    ----------
    share : float, default=0.01
        Share of the linear model in the density that `score_samples` gives and ``sample(noise=True)`` draws from, where
        features are real-valued or columns of several kinds. No row then scores lower than ``log(share)`` below the
        linear model: far from the training rows a network's output is arbitrary. 0 leaves the linear model out, and
        with it the noise on the encoder's inputs in training.
    weight_decay : float or "auto", default="auto"
        Shrinkage of the networks' weights, divided by the number of rows as a prior's would be. "auto" is 100 for fewer
        than 1000 training rows, those held out not counted, and 300 from there on. Paths and biases are not shrunk, so
        that a strong decay leads back to the linear model.

    References
    ----------
    Lucas, Tucker, Grosse & Norouzi (2019). "Don't blame the ELBO!", section 4. NeurIPS.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.inits import LinearInit
    >>> VAETransformer(init=LinearInit(weight_decay=0.0))
    VAETransformer(init=LinearInit(weight_decay=0.0))
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "share": [Interval(Real, 0, 1, closed="left")],
        "weight_decay": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
    }

    def __init__(self, share: float = 0.01, weight_decay: float | str = "auto") -> None:
        super().__init__()
        self.share = share
        self.weight_decay = weight_decay
        self.check_params()


class RandomInit(Init):
    """Leave the networks alone, and draw their weights from a normal distribution with variance 2 / fan_in.

    Nothing is shrunk, and the density is that of the networks.

    References
    ----------
    He, Zhang, Ren & Sun (2015). "Delving deep into rectifiers", equation 10. ICCV.

    Examples
    --------
    >>> from skvae import VAETransformer
    >>> from skvae.inits import RandomInit
    >>> VAETransformer(init=RandomInit())
    VAETransformer(init=RandomInit())
    """


INITS: dict[str, type[Init]] = {"linear": LinearInit, "random": RandomInit}
