"""What an installed wheel must do on the machine it is for: its library loads, and every set of kernels agrees.

Runs with the Python that has the wheel, needs numpy and nothing of the source tree: the test of cibuildwheel
(pyproject.toml) and of tests/test_wheel.py.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import deepnarrow
from deepnarrow.runtime import native
from deepnarrow.runtime.format import write
from deepnarrow.runtime.layout import PRECISIONS, layout
from deepnarrow.shapes.shape import parse

SHAPE = parse("tiny-el2-dl2-dm64-ff128-kv16-nh4-v300")
STEPS = 8


def answer(path: Path, kernels: str) -> np.ndarray:
    """Log-probabilities of an answer that is given, step by step, [STEPS, 5]."""
    engine = native.open_engine(path, threads=2, kernels=kernels)
    [memory] = engine.encode([[37, 81, 12, 5, 1]])
    row, logs = engine.start(memory), []
    for token in (0, *range(20, 20 + STEPS - 1)):
        logs.append(engine.step([row], [[token]], top=5).logs[0])
    engine.close()
    return np.array(logs)


def main() -> None:
    rng = np.random.default_rng(1)
    sets = native.kernels()
    with tempfile.TemporaryDirectory() as folder:
        for precision in PRECISIONS:
            path = Path(folder, f"{precision}.dn")
            tensors = {
                name: rng.normal(size=(rows, section.columns)).astype(np.float32) * 0.1
                for section in layout(SHAPE, precision).sections
                for name, rows in section.parts
            }
            write(path, SHAPE, precision, tensors)
            plain = answer(path, "portable")
            assert np.isfinite(plain).all()
            for kernels in sets:  # bfloat16 activations where the processor has them: three digits
                np.testing.assert_allclose(answer(path, kernels), plain, atol=0.03, err_msg=f"{precision} {kernels}")
    assert "torch" not in sys.modules
    print(f"{Path(deepnarrow.__file__).parent}: kernels {', '.join(sets)} agree in {', '.join(PRECISIONS)}")


if __name__ == "__main__":
    main()
