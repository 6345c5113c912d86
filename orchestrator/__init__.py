"""From a study to a table: plan, stages, Ray Tune, MLflow, reports and the CLI."""
