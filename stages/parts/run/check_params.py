"""Check params.yaml before anything runs, and print what is in force.

python -m stages.parts.run.check_params
"""

from stages.parts.run.commands import command
from stages.parts.run.params import load_params

if __name__ == "__main__":
    with command("check_params"):
        params = load_params()
    print(
        f"profile {params.profile}: source {params.raw.source}, style {params.program.style}, "
        f"{params.teacher.kind} teacher, "
        f"{params.student.kind} student"
    )
