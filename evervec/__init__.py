"""The ground floor: settings, messages, errors, logging and the Temporal client."""

__version__ = "0.1.0"
