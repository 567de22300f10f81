"""The ops in plain PyTorch: what they mean, the oracle of the tests, the eager arm of benchmarks."""
