"""An experiment: its configuration, and its training loop."""
