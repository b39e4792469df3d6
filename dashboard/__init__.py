"""The web page: how things stand, and the buttons that change it; and the same for programs, in JSON."""
