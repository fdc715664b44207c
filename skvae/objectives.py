"""Training objectives: one value per row, to be maximised; OBJECTIVES names them.

An objective returns the value and, whatever is trained, a bound on the log-likelihood in two terms: reconstruction and
KL, whose difference is the bound.
"""

from torch import Tensor, nn


class ELBO(nn.Module):
    """Evidence lower bound with the KL term weighted by `beta` (Higgins et al., 2017, equation 4).

    With ``beta=1`` it bounds the log-likelihood (Kingma & Welling, 2014, equation 3).

    Parameters
    ----------
    beta : float, default=1.0
        Weight of the KL term.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, vae: nn.Module, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value to be maximised, reconstruction and KL of each row, in nats: three tensors of shape (batch,)."""
        log_prob, kl = vae(x, eps)
        return log_prob - self.beta * kl, log_prob, kl


OBJECTIVES = {"elbo": ELBO}
