"""Memory and time of a training, predicted from shapes alone."""
