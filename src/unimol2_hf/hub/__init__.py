"""From and to the Hub: official checkpoints converted, models and libraries published, checked and pushed."""
