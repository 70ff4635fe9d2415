"""Write agents into the page: `python web/tools/bundle_agent.py mt30-1m`."""

import shutil
import sys
from pathlib import Path

from tdmpc_opt.play.agents import FOLDER, LIST, write_agents

SITE = Path(__file__).parents[1] / "public"


def main(checkpoints: list[str]) -> None:
    """Replace the bundled agents by these checkpoints."""
    (SITE / LIST).unlink(missing_ok=True)
    shutil.rmtree(SITE / FOLDER, ignore_errors=True)
    for entry in write_agents(checkpoints, SITE):
        sizes = ", ".join(f"{file['file']} {file['bytes']:,} bytes" for file in entry["files"])
        sys.stdout.write(f"{entry['name']}: {sizes}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
