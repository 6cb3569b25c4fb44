"""Kronserve: an inference microservice for Kronecker-attention models."""
