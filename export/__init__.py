"""From a PyTorch checkpoint to a verified ONNX bundle. Imports `models`, and `app.manifest` for the contract."""
