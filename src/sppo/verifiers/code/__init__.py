"""The `code` verifier: runs the program in a response against tests, each in a sandbox of its own."""
