"""The example's settings and addresses."""
