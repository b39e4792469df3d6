"""The doctor: whether everything that a set-up can have wrong is right, and what to do where it is not."""
