"""What the first rules, those of the first score, name first in both held-out parts.

python book/studies/doctor/first_rules.py COMMIT

COMMIT is the last one before the rules were mended. Its package is unpacked and reads today's logs.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ("held_out", "second_held_out")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    commit = parser.parse_args().commit
    packed = subprocess.run(
        ["git", "archive", commit, "nanogrpo"], cwd=HERE.parents[2], capture_output=True, check=True
    )
    with tempfile.TemporaryDirectory() as folder:
        tarfile.open(fileobj=io.BytesIO(packed.stdout)).extractall(folder, filter="data")
        sys.path.insert(0, folder)
        from nanogrpo.show import studies, triage

        assert Path(triage.__file__).is_relative_to(folder), "today's package was loaded"
        studies.STUDIES = HERE.parent
        named = {
            part: {f"{run.fault}/{run.seed}": run.diagnosis.first for run in triage.patients(part)}
            for part in PARTS
        }
    kept = {"commit": commit, "named": named}
    (HERE / "first_rules.json").write_text(json.dumps(kept, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
