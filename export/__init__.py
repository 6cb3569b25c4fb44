"""From a PyTorch checkpoint to a verified ONNX bundle. Imports `models`, and `app.manifest` for the contract."""

PACKAGES = ("app", "export", "models", "train")
"""Kronserve's own top-level packages."""
