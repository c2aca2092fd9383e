"""Check params.yaml before anything runs, and print what is in force.

python -m stages.parts.run.check_params
"""

import sys

from stages.parts.run.errors import UserError
from stages.parts.run.params import load_params

if __name__ == "__main__":
    try:
        params = load_params()
    except UserError as error:
        sys.exit(str(error))
    print(
        f"profile {params.profile}: source {params.raw.source}, style {params.program.style}, "
        f"{params.teacher.kind} teacher, "
        f"{params.student.kind} student"
    )
