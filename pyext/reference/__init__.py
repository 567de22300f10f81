"""The ops in plain PyTorch: what they mean, the tests' oracle, the benchmarks' eager arm."""
