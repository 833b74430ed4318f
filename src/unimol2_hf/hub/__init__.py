"""From and to the Hub: official checkpoints converted, models exported with their code."""
