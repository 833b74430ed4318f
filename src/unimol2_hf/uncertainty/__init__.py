"""How sure a model is: intervals and calibrated probabilities, fitted from arrays; nothing is trained here."""
