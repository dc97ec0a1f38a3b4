"""5 · Example* → Prediction*. Knows nothing about optimizers, pages or where examples come from."""
