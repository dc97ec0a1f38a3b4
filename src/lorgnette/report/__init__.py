"""Logs and predictions → something to look at: the run folder, its log, trackers, one HTML page.

Knows nothing about models, tokens or how training is done; imports no torch.
"""
