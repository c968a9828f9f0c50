"""How fast and how large binep is: measured, never tested."""
