"""Runs on a node with a real NVIDIA GPU, and only there; see README.md."""
