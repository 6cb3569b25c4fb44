"""Kronecker attention networks for images and volumes: MobileNetV2's inverted residuals with KAO in the branch.

"Kronecker Attention Networks" (Gao, Wang, Ji; arXiv 2007.08442), section 4.1, names the modules: BaseModule and
AttnModule, and with a shortcut around them BaseSkipModule and AttnSkipModule; MobileNetV2 is arXiv 1801.04381. Here the
operator follows the branch's depthwise convolution, with a shortcut of its own, so that a network begins as the one
without attention.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.config import KANetConfig, attention_module


def _convolution(order: int, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution of 2 or 3 spatial axes without bias, which the batch normalisation after it has."""
    kind = nn.Conv2d if order == 2 else nn.Conv3d
    return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def _normalisation(order: int, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if order == 2 else nn.BatchNorm3d(channels)


def _activated(order: int, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    return nn.Sequential(
        _convolution(order, inputs, outputs, kernel, stride, groups), _normalisation(order, outputs), nn.ReLU6()
    )


class KANetModule(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise 3x3, attention if there is one, 1x1 projection without activation.

    (b, c, N1, ..., Nk) -> (b, c', N1 / stride, ..., Nk / stride). The shortcut is there when the shape does not change.
    """

    def __init__(
        self, order: int, inputs: int, outputs: int, expansion: int, stride: int, attention: nn.Module | None
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _activated(order, inputs, hidden, 1)
        self.depthwise = _activated(order, hidden, hidden, 3, stride, groups=hidden)
        self.attention = attention
        self.project = nn.Sequential(_convolution(order, hidden, outputs, 1), _normalisation(order, outputs))
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        branch = self.depthwise(self.expand(x))
        if self.attention is not None:
            branch = branch + self.attention(branch.movedim(1, -1)).movedim(-1, 1)
        output: Tensor = self.project(branch)
        return x + output if self.skip else output


class KANet(nn.Module):
    """x (b, channels, *size) -> logits (b, classes); two sizes for images, three for volumes.

    Stem (3x3, stride 2), the config's modules, 1x1 convolution to `features` channels, mean over the map, linear.
    """

    def __init__(self, config: KANetConfig) -> None:
        super().__init__()
        order, width = len(config.size), config.stem
        self.stem = _activated(order, config.channels, width, 3, stride=2)
        modules = []
        for kind, channels, expansion, stride in config.modules:
            attention = attention_module(config, width * expansion, order) if kind == "attention" else None
            modules.append(KANetModule(order, width, channels, expansion, stride, attention))
            width = channels
        self.body = nn.Sequential(*modules)
        self.last = _activated(order, width, config.features, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.features, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.last(self.body(self.stem(x)))
        logits: Tensor = self.head(self.dropout(maps.flatten(2).mean(dim=-1)))
        return logits
