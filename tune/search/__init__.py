"""The search of every method's parameters: Optuna suggests, Ray Tune runs, workers judge."""
