"""PyTorch modules of the two papers: Higher-Order Transformers (HOT) and, on the same interfaces, Kronecker attention."""
