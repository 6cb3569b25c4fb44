"""Kronserve: an inference microservice for Kronecker-attention models."""

import os

# onnxruntime reports usage unless it is told not to before its first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
