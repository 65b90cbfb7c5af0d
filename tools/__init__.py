"""Programs for whoever works on this: the bundled weights, the pictures of docs/, the fuzzer; no part of the wheel."""
