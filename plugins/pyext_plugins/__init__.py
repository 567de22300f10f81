"""Research methods on top of pyext's ops, one package each."""
