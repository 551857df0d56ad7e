"""This folder is an nbgrader course: `nbgrader generate_assignment lab1` releases a lab, and so on."""

c = get_config()  # noqa: F821  nbgrader defines it

c.CourseDirectory.course_id = "nanogrpo"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your code here"}
c.ClearSolutions.text_stub = "*Your answer here.*"
c.Execute.timeout = 300  # seconds a cell
c.OverwriteCells.add_missing_cells = True  # a graded cell that a student deleted is graded all the same
