"""Evaluation: four commands with a file between them, and the rooms that they are made of.

    evaluate.py     1. an editor's predictions for a benchmark   benchmarks/, editors/
    score.py        2. its scores by a judge and other metrics   metrics/
    table.py        3. means with intervals                      tables/
    report.py       4. one page with everything on it            page/

What lies between them on disk is read and written in results/. Beside them stand commands of their own: paper_tables,
agreement (how far a judge can be trusted), leaks (whether a benchmark was trained on) and figure (a run as one image).
"""
