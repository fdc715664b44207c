"""The estimator's mixins: checks, training, rows through a fitted model, new rows."""
