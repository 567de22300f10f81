"""The commands of `splat-fit`, one module each."""
