"""What the attention operators cost on growing maps: `python -m bench.operators`."""
