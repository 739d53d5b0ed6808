"""What a study means: one tidy table, and from it frontiers, comparisons, figures and a report."""
