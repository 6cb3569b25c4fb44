"""PyTorch modules of Higher-Order Transformers (HOT): the mathematics and nothing else."""
