"""Prediction* → Score*: the field's metrics, with confidence intervals. Knows nothing about models, files or pages."""
