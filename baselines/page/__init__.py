"""The parts of the report: gallery, charts, headline, and its templates."""
