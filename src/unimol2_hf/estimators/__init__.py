"""scikit-learn's interface: molecules as X in `Pipeline`, `cross_val_score`, `GridSearchCV`."""
