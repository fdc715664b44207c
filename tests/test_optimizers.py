import pickle

import pytest
import torch

from skvae._fast.optimizers import BARE


def descend(kind, n_steps=5):
    """Where `n_steps` on a bowl lead, and the optimizer."""
    place = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = kind([place], lr=0.1)
    for _ in range(n_steps):
        optimizer.zero_grad()
        place.square().sum().backward()
        optimizer.step()
    return place.detach(), optimizer


@pytest.mark.parametrize("kind", BARE, ids=lambda kind: kind.__name__)
def test_bare_optimizers_step_as_torch_s_do(kind):
    place, optimizer = descend(kind)
    bare_place, bare = descend(BARE[kind])
    assert torch.equal(bare_place, place)
    assert isinstance(bare, kind)
    assert repr(bare) == repr(optimizer)
    torch.testing.assert_close(bare.state_dict(), optimizer.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", BARE.values(), ids=lambda kind: kind.__name__)
def test_bare_optimizers_keep_what_torch_s_do(kind):
    _, optimizer = descend(kind)
    restored = pickle.loads(pickle.dumps(optimizer))
    torch.testing.assert_close(restored.state_dict(), optimizer.state_dict(), rtol=0, atol=0)
    schedule, before = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), optimizer.param_groups[0]["lr"]
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == before / 2
