"""From a NOTIFY to a signal: notify, debounce, route."""
