"""6 · Prediction* → Score*. Knows nothing about models, files or pages; numpy and the standard library are enough."""
