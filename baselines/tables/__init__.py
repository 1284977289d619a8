"""From scores to means with intervals, beside the published figures, as Markdown, LaTeX, CSV and PNG."""
