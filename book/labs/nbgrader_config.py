"""This folder is an nbgrader course: `nbgrader generate_assignment lab1` releases a lab, and so on."""

from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearOutput,
    DeduplicateIds,
    OverwriteCells,
    OverwriteKernelspec,
)

c = get_config()  # noqa: F821  nbgrader defines it


class ForgetCopies(DeduplicateIds):
    """Leaves a copied cell no trace of nbgrader; 0.9.6 leaves an empty one, and then stops at it."""

    def preprocess(self, nb, resources):
        """Only the first cell of an id is graded."""
        nb, resources = super().preprocess(nb, resources)
        for cell in nb.cells:
            if cell.metadata.get("nbgrader") == {}:
                del cell.metadata["nbgrader"]
        return nb, resources


class OverwriteAndAddCells(OverwriteCells):
    """Grades a graded cell that a student deleted, too.

    nbgrader 0.9.6 can do so itself, but then it stops with a KeyError at a copied cell, or where the answer
    is deleted as well. Here a cell comes behind the nearest one that is there, or last.
    """

    def add_missing_grade_cells(self, nb, resources):
        """Put them back, from the gradebook."""
        source = self.gradebook.find_notebook(self.notebook_id, self.assignment_id)
        cells = {cell.name: cell for cell in source.source_cells}
        points = {cell.name: cell.max_score for cell in source.grade_cells}
        answers = {cell.name for cell in source.solution_cells}
        ids = list(cells)
        for name in [name for name in ids if name in points]:
            there = {c.metadata.get("nbgrader", {}).get("grade_id"): n for n, c in enumerate(nb.cells)}
            if name not in there:
                before = [there[other] for other in ids[: ids.index(name)] if other in there]
                new = self.missing_cell_transform(cells[name], points[name], is_solution=name in answers)
                nb.cells.insert(before[-1] + 1 if before else len(nb.cells), new)
        return nb, resources

    def add_missing_task_cells(self, nb, resources):
        """The labs have none."""
        return nb, resources


c.CourseDirectory.course_id = "nanogrpo"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your code here"}
c.ClearSolutions.text_stub = "*Your answer here.*"
c.Execute.timeout = 300  # seconds a cell
c.OverwriteAndAddCells.add_missing_cells = True
c.Autograde.sanitize_preprocessors = [
    ClearOutput,
    ForgetCopies,
    OverwriteKernelspec,
    OverwriteAndAddCells,
    CheckCellMetadata,
]
