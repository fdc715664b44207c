"""Devices by name: what "auto" is, and where to go on when a device is not there."""

import torch


def resolve_device(device: str | torch.device) -> str:
    if str(device) == "auto":
        return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    if not _exists(device) or torch.device(device).type == "meta":  # which holds no values
        raise ValueError(
            f"The 'device' parameter of VAETransformer names a device that torch cannot use here: {str(device)!r}. "
            "device='auto' takes an accelerator where there is one."
        )
    return str(device)


def device_here(device: str | torch.device) -> str:
    """The device that a fitted model was on, or the CPU if there is no such device here."""
    if str(device) == "auto":
        return resolve_device(device)
    return str(device) if _exists(device) else "cpu"


def _exists(device: str | torch.device) -> bool:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        return False
    return True


def widest(x: torch.Tensor) -> torch.Tensor:
    """`x` in float64, or as it is where the device has none: Apple's."""
    return x if x.device.type == "mps" else x.double()
