"""A transformer computed by torch in bfloat16: autocast, with the weights converted once."""

import copy
import importlib
from collections.abc import Callable
from typing import Any


def is_fast(device: str) -> bool:
    """Whether the device computes bfloat16 itself; emulated, it is slow."""
    torch = importlib.import_module("torch")
    if device == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return device == "cuda" and bool(torch.cuda.is_bf16_supported(including_emulation=False))


def make_forward(transformer: Any, device: str) -> Callable[..., Any]:
    """A replacement of the transformer's `forward`.

    Autocast alone converts the weights of the linear layers in each pass anew, which takes a third of the time of a
    large model's pass. Here they are converted once, in a copy that shares all else; the results are the same.
    """
    torch = importlib.import_module("torch")
    shared = {id(tensor): tensor for tensor in (*transformer.parameters(), *transformer.buffers())}
    converted = {
        id(weight): torch.nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        for weight in linear_weights(transformer)
    }
    plain = copy.deepcopy(transformer, {**shared, **converted}).forward

    def forward(*arguments: Any, **features: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return plain(*arguments, **features)

    return forward


def linear_weights(transformer: Any) -> list[Any]:
    """The parameters that nothing but linear layers read: most of a transformer's."""
    linear = importlib.import_module("torch").nn.Linear
    kinds: dict[bool, dict[int, Any]] = {True: {}, False: {}}
    for module in transformer.modules():
        kinds[isinstance(module, linear)] |= {id(tensor): tensor for tensor in module.parameters(recurse=False)}
    return [tensor for number, tensor in kinds[True].items() if number not in kinds[False]]
