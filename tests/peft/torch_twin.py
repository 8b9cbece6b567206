"""The torch side of the models in `method_peers`."""

import numpy as np
import torch


class Twin(torch.nn.Module):
    """The torch side of a model with a host, and of a dense one with a second layer."""

    def __init__(self, kind, weights):
        super().__init__()
        self.kind = kind
        first = {
            "Conv2D": lambda: torch.nn.Conv2d(2, 8, 3),
            "Embedding": lambda: torch.nn.Embedding(9, 6),
        }
        self.host = first.get(kind, lambda: torch.nn.Linear(6, 8))()
        if kind == "Dense":
            self.second = torch.nn.Linear(8, 4)
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), weights, strict=True):
                parameter.copy_(torch.tensor(turned(kind, value)).reshape(parameter.shape))

    def forward(self, x):
        if self.kind == "Conv2D":
            return self.host(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.host(x)
        return self.second(torch.tanh(y)) if self.kind == "Dense" else y


def turned(kind, value):
    """Returns a weight of Keras as torch has it."""
    if kind == "Embedding" or value.ndim == 1:
        return value
    if kind == "Conv2D":
        return value.transpose(3, 2, 0, 1).copy()
    return np.ascontiguousarray(value.reshape(value.shape[0], -1).T) if value.shape[0] != 2 else value
