"""Measurements of the op families: one module per family, one harness. Lives in the checkout."""
