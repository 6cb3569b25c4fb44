"""PyTorch modules of Kronecker attention (HOT, KAO) and its baselines: the mathematics and nothing else."""
