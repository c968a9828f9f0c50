"""What is wrong with a data set."""


class DataError(ValueError):
    """A data set is unknown, missing or damaged; one line that names the file and the remedy."""
