"""Networks as a user writes them, from our blocks; `kronserve export --module tests.export.own_networks:NAME`."""

from __future__ import annotations

import sys
from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.attention import HOTAttention
from models.block import Block
from models.config import ForecasterConfig
from models.forecaster import Forecaster


class Differences(nn.Module):
    """(b, n, 12) -> (b, n, 5): tokens are single steps' differences, attention over [variates, time]."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(1, 8)
        self.block = Block(HOTAttention(8, 2, 2, "sum", (1,)), 8, 12, 0.1)
        self.read = nn.Linear(11 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.block(self.lift(x.diff(dim=-1).unsqueeze(-1)))
        result: Tensor = self.read(tokens.flatten(-2)) + x[..., -1:]
        return result


class Slices(nn.Module):
    """(b, 2, 6, 4) -> (b, 3): an image of two channels, attention over its rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv2d(2, 8, 1)
        self.block = Block(HOTAttention(8, 2, 2), 8, 12, 0.1)
        self.norm = nn.BatchNorm1d(8)
        self.read = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.block(self.lift(x).movedim(1, -1))
        result: Tensor = self.read(self.norm(tokens.mean(dim=(1, 2))))
        return result


class Counting(nn.Module):
    """(b, n, 12) -> (b, n, 5): it computes with whole numbers among its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(12, 10)
        self.register_buffer("k", torch.tensor(3))
        self.register_buffer("places", torch.arange(100))
        self.register_buffer("grid", torch.arange(12).reshape(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lift(x).index_select(-1, (self.places + self.k)[:5]) * self.k + (self.grid + self.k).sum()
        return result


class Turning(nn.Module):
    """(b, n, 12) -> (b, n, 5): phases among its buffers, which are complex."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.read = nn.Linear(12, 5)
        self.register_buffer("phases", torch.ones(7, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.read(torch.fft.irfft(torch.fft.rfft(x) * self.phases, n=12).to(x.dtype))
        return result


class Weighing(nn.Module):
    """(b, n, 12) -> (b, n, 5): a buffer of any real datatype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weights", torch.arange(5).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x[..., :5] + self.weights.to(x.dtype)
        return result


class Deciding(nn.Module):
    """(b, n, 12) -> (b, n, 5): what it computes depends on what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :5] if x.mean() > 0 else -x[..., :5]


class Bessel(nn.Module):
    """(b, n, 12) -> (b, n, 5), by a function that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.special.bessel_j0(x[..., :5])
        return result


class Making(nn.Module):
    """(b, n, 12) -> (b, n, 5): it makes a tensor of torch's default datatype."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.ones(12, 5)


class Single(Making):
    """(b, n, 12) -> (b, n, 5), in float32 whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lift(x.float())
        return result


class Placed(nn.Module):
    """(b, n, 12) -> (b, n, 5): it knows a hundred variates."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(12, 5)
        self.place = nn.Embedding(100, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lift(x) + self.place(torch.arange(x.shape[1]))
        return result


class Masked(nn.Module):
    """(b, n, 3) -> (b, n, 3), by attention of every step to those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        scores = x.unsqueeze(-1) * x.unsqueeze(-2) + self.mask
        return (scores.softmax(-1) @ x.unsqueeze(-1)).squeeze(-1) + self.bias


class Drifting(nn.Module):
    """(b, n, 12) -> (b, n, 1): of zeros it makes what float32 rounds off of 0.1 * 0.1 - 0.01."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(12, 1, bias=False)
        self.register_buffer("parts", torch.tensor([0.1, 0.01]))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lift(x) + (self.parts[0] * self.parts[0] - self.parts[1])
        return result


class Largest(nn.Module):
    """(b, n, 12) -> (b, n, 5): the five largest values, gathered by fewer indices than there are values."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.gather(x, -1, x.topk(5, -1).indices) + self.bias


def drifting() -> nn.Module:
    return Drifting()


def largest() -> nn.Module:
    return Largest()


def making() -> nn.Module:
    return Making()


def single() -> nn.Module:
    return Single()


def placed() -> nn.Module:
    return Placed()


def masked() -> nn.Module:
    return Masked()


def one_logit() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 1))


def wrapping_a_module() -> nn.Module:
    """Named as a parallel run names everything."""
    return nn.Sequential(OrderedDict(module=nn.Linear(12, 5)))


def with_the_authors_names() -> nn.Module:
    """Parts that the HOT authors' code has too, in a network that is not theirs."""
    block = nn.Sequential(OrderedDict(norm1=nn.LayerNorm(12), query_proj=nn.Linear(12, 5)))
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(block)))


def turning() -> nn.Module:
    return Turning(torch.complex64)


def turning_finely() -> nn.Module:
    return Turning(torch.complex128)


def weighing() -> nn.Module:
    return Weighing(torch.float32)


def decides_by_its_values() -> nn.Module:
    return Deciding()


def beyond_onnx() -> nn.Module:
    return Bessel()


def counting() -> nn.Module:
    return Counting()


def differences() -> nn.Module:
    return Differences()


def slices() -> nn.Module:
    return Slices()


def configured() -> nn.Module:
    """One of ours, which says by its config what it takes."""
    return Forecaster(ForecasterConfig(lookback=12, horizon=5, dim=8, depth=1, heads=2, hidden=12))


def text() -> str:
    return "no module"


def fails() -> nn.Module:
    return nn.Linear(torch.zeros(1).item(), "x")  # type: ignore[arg-type]


def leaves() -> nn.Module:
    sys.exit()


def pair() -> nn.Module:
    return nn.LSTM(12, 3)
