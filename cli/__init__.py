"""The commands, and the local stack that `up` and `demo` start."""
