"""Real activations: quantised updates with error feedback."""
