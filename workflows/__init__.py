"""The workflows: deterministic, light imports only."""
