"""What a label is: how it is read and checked, and how predictions are measured against it."""
