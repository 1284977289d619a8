"""What the report is made from: the run folder, the gallery, and its templates."""
