"""`teach`: a person corrects a model's answers on a page, and the model is trained on the corrections meanwhile."""
