"""Devices by name: what "auto" is, and where to go on when a device is not there."""

import torch


def resolve_device(device: str | torch.device) -> str:
    if str(device) == "auto":
        return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        torch.zeros((), device=device).item()  # which "meta" refuses too
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"The 'device' parameter of VAETransformer names a device that torch cannot use here: {str(device)!r}. "
            "device='auto' takes an accelerator where there is one."
        ) from error
    return str(device)


def device_here(device: str | torch.device) -> str:
    """The device that a fitted model was on, or the CPU if there is no such device here."""
    try:
        return resolve_device(device)
    except ValueError:
        return "cpu"


def widest(x: torch.Tensor) -> torch.Tensor:
    """`x` in float64, or as it is where the device has none: Apple's."""
    return x if x.device.type == "mps" else x.double()
