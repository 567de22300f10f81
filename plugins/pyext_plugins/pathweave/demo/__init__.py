"""The demo of `pathweave`: one set of digits, learned through five kinds of view."""
