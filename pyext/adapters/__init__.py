"""Other packages' interfaces over pyext's ops: what their callers import instead."""
