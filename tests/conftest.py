"""Settings of every test."""

import torch
from hypothesis import settings

# Tests run beside each other's threads; one each is faster, and repeats to the bit.
torch.set_num_threads(1)
settings.register_profile("binep", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("binep")
