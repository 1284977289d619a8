"""From scores to means with intervals, beside the published scores, as Markdown, LaTeX, CSV and PNG."""
