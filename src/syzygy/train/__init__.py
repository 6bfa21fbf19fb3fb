"""Training: one small loop that knows no model, and the tasks it runs."""
