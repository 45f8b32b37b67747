"""Command line and bootstrap: how ranks are started and find each other."""
