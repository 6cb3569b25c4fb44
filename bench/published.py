"""Published results on the same protocols, as quoted by the papers themselves.

Long-term forecasting, lookback 96, (MSE, MAE) at horizons 96, 192, 336 and 720 on scaled data: iTransformer (arXiv
2310.06625), which also reports the others. Volumes: MedMNIST v2 (arXiv 2110.14795), (AUC, ACC) at
28^3; the bundles here see the same scans at 64^3 reduced to 32^3.
"""

from __future__ import annotations

Errors = tuple[float, float]

FORECASTING: dict[str, dict[str, tuple[Errors, Errors, Errors, Errors]]] = {
    "etth1": {
        "iTransformer": ((0.386, 0.405), (0.441, 0.436), (0.487, 0.458), (0.503, 0.491)),
        "PatchTST": ((0.414, 0.419), (0.460, 0.445), (0.501, 0.466), (0.500, 0.488)),
        "DLinear": ((0.386, 0.400), (0.437, 0.432), (0.481, 0.459), (0.519, 0.516)),
        "TimesNet": ((0.384, 0.402), (0.436, 0.429), (0.491, 0.469), (0.521, 0.500)),
        "Crossformer": ((0.423, 0.448), (0.471, 0.474), (0.570, 0.546), (0.653, 0.621)),
    },
    "weather": {
        "iTransformer": ((0.174, 0.214), (0.221, 0.254), (0.278, 0.296), (0.358, 0.347)),
        "PatchTST": ((0.177, 0.218), (0.225, 0.259), (0.278, 0.297), (0.354, 0.348)),
        "DLinear": ((0.196, 0.255), (0.237, 0.296), (0.283, 0.335), (0.345, 0.381)),
        "TimesNet": ((0.172, 0.220), (0.219, 0.261), (0.280, 0.306), (0.365, 0.359)),
        "Crossformer": ((0.158, 0.230), (0.206, 0.277), (0.272, 0.335), (0.398, 0.418)),
    },
}

VOLUMES: dict[str, dict[str, tuple[float, float]]] = {
    "adrenalmnist3d": {
        "ResNet-18 3D": (0.827, 0.721),
        "ResNet-18 ACS": (0.839, 0.754),
        "ResNet-50 3D": (0.828, 0.745),
        "auto-sklearn": (0.828, 0.802),
    },
}
