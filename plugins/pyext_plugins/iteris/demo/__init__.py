"""The demo: a network of digits, and MiniLM on five kinds of text."""
