"""Grade a folder of submitted labs: ``python -m nanogrpo.teach.grade submissions/``.

    notebook    which lab is it
    plan        where do the lab's own graded cells belong in it
    process     run it in a process of its own, each cell with a time limit
    worker      what that process does
    guard       what a graded cell may rely on, whatever the notebook did before
    results     an answer as a graded cell gets it
    report      the table, the CSV for Canvas, results.json for Gradescope

A cell that raises does not stop the rest, as in nbgrader. The answers are the student's; the graded cells are
those of the lab's source, whatever the submission made of them.
"""
