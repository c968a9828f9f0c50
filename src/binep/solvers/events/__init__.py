"""Binary activations: event-driven updates."""
