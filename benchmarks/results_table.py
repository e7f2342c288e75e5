"""Write the README's results from the ledger in docs/results, or check that they are the ledger's.

python benchmarks/results_table.py            writes
python benchmarks/results_table.py --check    exits with 1 if README.md says something else
"""

import sys
from pathlib import Path

from deepnarrow.measure.ledger import read
from deepnarrow.measure.results_table import markdown

ROOT = Path(__file__).resolve().parents[1]
README, LEDGER = ROOT / "README.md", ROOT / "docs" / "results" / "ledger.jsonl"
BEGIN, END = "<!-- results:", "<!-- /results -->"


def main() -> None:
    text = README.read_text("utf-8")
    head, rest = text.split(BEGIN, 1)
    comment, tail = rest.split("\n", 1)[0], rest.split(END, 1)[1]
    wanted = f"{head}{BEGIN}{comment}\n{markdown(read(LEDGER))}\n{END}{tail}"
    if "--check" in sys.argv:
        if wanted != text:
            sys.exit("README.md's results are not the ledger's; run python benchmarks/results_table.py")
    else:
        README.write_text(wanted, "utf-8")


if __name__ == "__main__":
    main()
