"""What is read off trained networks and off runs."""
