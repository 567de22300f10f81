"""Public signatures and their checks, shared by the compiled ops and their reference."""
